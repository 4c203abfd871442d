"""`python -m allranks.cli.merge_lora`, Axolotl's older form of `allranks merge-lora`."""

from allranks.cli.main import main_of

if __name__ == "__main__":
    main_of("merge-lora")
