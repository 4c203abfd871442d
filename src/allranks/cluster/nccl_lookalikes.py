"""Names that look like NCCL's and are not: others' own, old ones, and those that never were.

TORCH_NCCL_*, TORCH_FR_* and GLOO_* are those of torch 2.11 to 2.13.
"""

NOT_NCCLS_OWN = (
    # Where NCCL lies, as images and build scripts note it.
    *("NCCL_VERSION", "NCCL_HOME", "NCCL_PATH", "NCCL_ROOT*", "NCCL_INCLUDE*", "NCCL_LIB*"),
    # Plugins' own: NVIDIA's for UCX and SHARP, Google's, and those that come with NCCL as examples.
    *("NCCL_UCX_*", "NCCL_SHARP_*", "NCCL_IBEXT_*", "NCCL_PLUGIN_*", "NCCL_FASTRAK_*", "NCCL_GPUDIRECTTCPX_*"),
    *("NCCL_SHIMNET_*", "NCCL_TUNER_CONFIG_*", "NCCL_INSPECTOR_*", "NCCL_PROFILE_*", "NCCL_TESTS_*"),
)
"""Names and patterns of others that begin alike."""

_TORCHS_OWN = """
TORCH_NCCL_ASYNC_ERROR_HANDLING TORCH_NCCL_AVOID_RECORD_STREAMS TORCH_NCCL_BCAST_UNIQUEID TORCH_NCCL_BLOCKING_WAIT
TORCH_NCCL_COORD_CHECK_MILSEC TORCH_NCCL_CUDA_EVENT_CACHE TORCH_NCCL_DEBUG_INFO_PIPE_FILE TORCH_NCCL_DESYNC_DEBUG
TORCH_NCCL_DUMP_ON_TIMEOUT TORCH_NCCL_ENABLE_MONITORING TORCH_NCCL_ENABLE_TIMING TORCH_NCCL_EXTRA_DUMP_ON_EXEC
TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC TORCH_NCCL_HIGH_PRIORITY TORCH_NCCL_LOG_CPP_STACK_ON_UNCLEAN_SHUTDOWN
TORCH_NCCL_NAN_CHECK TORCH_NCCL_NONBLOCKING_TIMEOUT TORCH_NCCL_PROPAGATE_ERROR TORCH_NCCL_RANKS_PER_ROOT
TORCH_NCCL_RETHROW_CUDA_ERRORS TORCH_NCCL_SHOW_EAGER_INIT_P2P_SERIALIZATION_WARNING TORCH_NCCL_USE_COMM_NONBLOCKING
TORCH_NCCL_USE_TENSOR_REGISTER_ALLOCATOR_HOOK TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC
TORCH_FR_BUFFER_SIZE TORCH_FR_CPP_STACK TORCH_FR_DUMP_DYNAMIC_FILE_NAME TORCH_FR_DUMP_TEMP_FILE
GLOO_SOCKET_IFNAME GLOO_DEVICE_TRANSPORT GLOO_DEVICE_TRANSPORT_TCP_TLS_CA_FILE GLOO_DEVICE_TRANSPORT_TCP_TLS_CA_PATH
GLOO_DEVICE_TRANSPORT_TCP_TLS_CERT GLOO_DEVICE_TRANSPORT_TCP_TLS_PKEY GLOO_DISABLE_CONNECTION_RETRIES
GLOO_ENABLE_RANK_AS_SEQUENCE_NUMBER GLOO_ENABLE_STORE_V2_API GLOO_LOG_LEVEL
"""

TORCHS_OWN = frozenset(_TORCHS_OWN.split())
"""What PyTorch and gloo read for the process groups."""

REPLACED = {
    "NCCL_ASYNC_ERROR_HANDLING": "TORCH_NCCL_ASYNC_ERROR_HANDLING",
    "NCCL_BLOCKING_WAIT": "TORCH_NCCL_BLOCKING_WAIT",
    "NCCL_DESYNC_DEBUG": "TORCH_NCCL_DESYNC_DEBUG",
    "NCCL_ENABLE_TIMING": "TORCH_NCCL_ENABLE_TIMING",
    "NCCL_AVOID_RECORD_STREAMS": "TORCH_NCCL_AVOID_RECORD_STREAMS",
    "NCCL_USE_TENSOR_REGISTER_ALLOCATOR_HOOK": "TORCH_NCCL_USE_TENSOR_REGISTER_ALLOCATOR_HOOK",
    "TORCH_NCCL_TRACE_BUFFER_SIZE": "TORCH_FR_BUFFER_SIZE",
    "TORCH_NCCL_TRACE_CPP_STACK": "TORCH_FR_CPP_STACK",
    "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": "TORCH_FR_DUMP_TEMP_FILE",
    "NCCL_MAX_NRINGS": "NCCL_MAX_CTAS",
    "NCCL_MIN_NRINGS": "NCCL_MIN_CTAS",
    "NCCL_MAX_NCHANNELS": "NCCL_MAX_CTAS",
    "NCCL_MIN_NCHANNELS": "NCCL_MIN_CTAS",
}
"""Deprecated name -> its successor. The old one still works."""

REMOVED = {
    "NCCL_IB_CUDA_SUPPORT": "NCCL_NET_GDR_LEVEL",
    "NCCL_IB_GDR_LEVEL": "NCCL_NET_GDR_LEVEL",
    "NCCL_SINGLE_RING_THRESHOLD": "NCCL_ALGO",
    "NCCL_TREE_THRESHOLD": "NCCL_ALGO",
    "NCCL_LL_THRESHOLD": "NCCL_PROTO",
    "NCCL_RINGS": "NCCL_GRAPH_FILE",
    "NCCL_CHECKS_DISABLE": "NCCL_CHECK_MODE",
}
"""Name that NCCL no longer reads -> what took its place."""

NEVER_EXISTED = {
    "NCCL_TIMEOUT": "the time-out of a collective is PyTorch's, not NCCL's: set `network.timeout` in the config",
    "NCCL_COMPRESSION": "NCCL compresses nothing: to send less, set `ddp_comm_hook` (DDP), `fsdp_config.reduce_dtype` "
    "(FSDP2) in the config, and raise `gradient_accumulation_steps`; see docs/communication.md",
    "NCCL_IB_ENABLE": "InfiniBand is on unless NCCL_IB_DISABLE is 1: set `network.infiniband` in the config",
    "NCCL_ENABLE_IB": "InfiniBand is on unless NCCL_IB_DISABLE is 1: set `network.infiniband` in the config",
    "NCCL_IFNAME": "it is NCCL_SOCKET_IFNAME: set `network.interface` in the config",
    "NCCL_INTERFACE": "it is NCCL_SOCKET_IFNAME: set `network.interface` in the config",
    "NCCL_HCA": "it is NCCL_IB_HCA: set `network.hcas` in the config",
    "NCCL_LOG_LEVEL": "it is NCCL_DEBUG: set `network.debug` in the config",
    "NCCL_PORT": "NCCL chooses its ports from the kernel's range (net.ipv4.ip_local_port_range)",
    "GLOO_TIMEOUT": "the time-out of a collective is PyTorch's: set `network.timeout` in the config",
    "GLOO_IFNAME": "it is GLOO_SOCKET_IFNAME: set `network.interface` in the config",
    "TORCH_NCCL_TIMEOUT": "the time-out of a collective is an argument, not a variable: set `network.timeout`",
}
"""Names that circulate and that nothing reads -> what to do instead."""
