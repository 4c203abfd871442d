"""The probe: what there is to know of a node, asked in a program of its own that any Python from 3.8 on can run."""

from allranks.cluster.probe.send import ProbeRequest, probe_this_node, read_report, source_text

__all__ = ["ProbeRequest", "probe_this_node", "read_report", "source_text"]
