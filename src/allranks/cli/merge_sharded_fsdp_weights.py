"""`-m allranks.cli.merge_sharded_fsdp_weights`, Axolotl's older form of `allranks merge-sharded-fsdp-weights`."""

from allranks.cli.main import main_of

if __name__ == "__main__":
    main_of("merge-sharded-fsdp-weights")
