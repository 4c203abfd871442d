"""Which environment variables NCCL knows.

Names, values and versions are those of NCCL's user guide, page Environment Variables, version 2.32; names without an
entry there are from the library 2.28.9, which torch 2.11 brings. A new version of NCCL means a look at that page, and a
new NCCL_VERSION here.
"""

from collections.abc import Iterator
from dataclasses import dataclass

NCCL_VERSION = "2.32"


@dataclass(frozen=True)
class Variable:
    """What is known of one variable.

    `since`: the version of NCCL that brought it, where that is known and later than 2.18. `is_number`: NCCL reads it
    with C's strtoll, which takes the digits at the start and ignores the rest. `equal`: all nodes need the same value.
    `default`: what counts as the same as not set.
    """

    name: str
    meaning: str
    since: str = ""
    is_number: bool = False
    equal: bool = False
    default: str | None = None


def _numbers(text: str, *, equal: bool = False) -> Iterator[Variable]:
    return _rows(text, is_number=True, equal=equal)


def _words(text: str, *, equal: bool = False) -> Iterator[Variable]:
    return _rows(text, is_number=False, equal=equal)


def _rows(text: str, *, is_number: bool, equal: bool) -> Iterator[Variable]:
    """One variable a line: NAME, version or -, default or -, meaning."""
    for line in text.strip().splitlines():
        name, since, default, meaning = line.split(maxsplit=3)
        yield Variable(
            f"NCCL_{name}",
            meaning,
            since.strip("-"),
            is_number,
            equal,
            None if default == "-" else default,
        )


# These decide how two ranks speak to each other: when they differ, NCCL hangs, fails or is slow without a word.
_EQUAL_NUMBERS = """
BUFFSIZE                   -       4194304 bytes of the buffer between two GPUs
LL_BUFFSIZE                -       -       bytes of the buffer of the LL protocol
LL128_BUFFSIZE             -       -       bytes of the buffer of the LL128 protocol
NTHREADS                   -       -       threads of a CUDA block
LL128_NTHREADS             -       -       threads of a CUDA block with the LL128 protocol
MAX_CTAS                   -       -       most CUDA blocks for communication
MIN_CTAS                   -       -       fewest CUDA blocks for communication
MAX_NCHANNELS              -       -       most channels
MIN_NCHANNELS              -       -       fewest channels
MAX_P2P_NCHANNELS          -       -       most channels for send and receive
MIN_P2P_NCHANNELS          -       -       fewest channels for send and receive
NCHANNELS_PER_NET_PEER     -       -       channels to one remote rank
CGA_CLUSTER_SIZE           -       -       CUDA blocks in a thread block cluster
IB_DISABLE                 -       0       1 leaves InfiniBand and RoCE alone
IB_QPS_PER_CONNECTION      -       1       queue pairs of a connection
IB_SPLIT_DATA_ON_QPS       -       0       1 splits a message over the queue pairs
IB_AR_THRESHOLD            -       8192    bytes from which data goes apart, for adaptive routing
IB_ADAPTIVE_ROUTING        -       -       1 allows adaptive routing
IB_MERGE_NICS              2.20    1       1 makes one device of a card's two ports
IB_ROCE_VERSION_NUM        2.21    2       version of RoCE, where the GID is chosen by NCCL
IB_OOO_RQ                  2.30    0       1 lets receives complete out of order
CROSS_NIC                  -       2       1 lets a ring use different NICs on different nodes
COLLNET_ENABLE             -       0       1 uses a CollNet plugin (SHARP)
COLLNET_NODE_THRESHOLD     -       2       fewest nodes for CollNet
NVLS_ENABLE                -       2       0 leaves NVLink SHARP alone
NVLS_NCHANNELS             -       -       channels of NVLink SHARP
NVLS_CHUNKSIZE             -       -       bytes of a chunk of NVLink SHARP
NVLSTREE_MAX_CHUNKSIZE     -       -       bytes of a chunk of trees over NVLink SHARP
PAT_ENABLE                 -       -       0 leaves the PAT algorithm alone
PXN_DISABLE                -       0       1 forbids other GPUs' NICs
P2P_PXN_LEVEL              -       2       when send and receive use other GPUs' NICs
PXN_C2C                    2.27    -       1 allows other GPUs' NICs over C2C
P2P_NET_CHUNKSIZE          -       131072  bytes of a network message of send and receive
P2P_LL_THRESHOLD           -       16384   most bytes of send and receive with the LL protocol
ALLOC_P2P_NET_LL_BUFFERS   -       0       1 allocates LL buffers for send and receive
CHUNK_SIZE                 -       -       bytes of a chunk
NET_SHARED_BUFFERS         -       1       0 gives each remote rank buffers of its own
NET_SHARED_COMMS           -       1       0 makes connections of their own for other GPUs' data
NET_FORCE_FLUSH            -       -       1 flushes after every receive
RUNTIME_CONNECT            2.22    1       0 connects all ranks at the start
COMM_BLOCKING              -       -       0 lets NCCL's calls return at once
OOB_NET_ENABLE             2.23    0       1 sends the start-up's messages through the data network
MNNVL_ENABLE               2.21    2       NVLink between nodes
CUMEM_ENABLE               -       -       1 allocates with CUDA's cuMem functions
WIN_ENABLE                 2.27    1       0 forbids registered windows
MULTI_RANK_GPU_ENABLE      2.30    0       1 allows several ranks on one GPU
LAUNCH_ORDER_IMPLICIT      2.26    0       1 keeps operations of several communicators in program order
SOCKET_MAGIC               -       -       number that NCCL's sockets greet each other with
"""

_EQUAL_WORDS = """
ALGO                       -       -       algorithms that may be used
PROTO                      -       -       protocols that may be used: LL, LL128, Simple
NET                        -       -       network module: IB, Socket or a plugin's name
SOCKET_FAMILY              -       -       AF_INET or AF_INET6
IB_ADDR_FAMILY             2.21    AF_INET AF_INET or AF_INET6, where the GID is chosen by NCCL
CTA_POLICY                 2.27    -       how many CUDA blocks are used
NETDEVS_POLICY             2.28    -       how many network devices a GPU gets
IB_RAIL_POLICY             2.30.5  -       how rails are assigned
NET_MERGE_POLICY           2.30.5  ALL     which adapters are merged
NET_MERGE_LEVEL            -       -       how near adapters are that are merged
CHECK_MODE                 2.29.7  DEFAULT what is checked of arguments
PSK                        -       -       secret key of encrypted sockets
"""

# These describe a node: they may differ, as names of interfaces and cards do.
_OWN_NUMBERS = """
SOCKET_NTHREADS            -       -       helper threads of a socket connection
NSOCKS_PERTHREAD           -       -       sockets of a helper thread
SOCKET_RETRY_CNT           2.24    34      tries to connect
SOCKET_RETRY_SLEEP_MSEC    2.24    100     milliseconds between tries
SOCKET_POLL_TIMEOUT_MSEC   2.28    0       milliseconds to wait in a poll
SOCKET_RCVBUF              -       -       bytes of a socket's receive buffer
SOCKET_SNDBUF              -       -       bytes of a socket's send buffer
IB_TIMEOUT                 -       20      wait of InfiniBand: 4.096 us x 2^value
IB_RETRY_CNT               -       7       tries of InfiniBand
IB_GID_INDEX               -       -1      entry of the GID table, for RoCE
IB_PKEY                    -       0       entry of the table of partition keys
IB_PKEY_VALUE              2.31    -1      partition key
IB_SL                      -       0       service level
IB_TC                      -       0       traffic class
IB_FIFO_TC                 2.22.3  -       traffic class of control messages
IB_RETURN_ASYNC_EVENTS     2.23    1       0 hides the adapter's events
IB_EVENT_BASED_LB          2.31    0       1 balances load by the speed of ports
IB_PCI_RELAXED_ORDERING    -       2       PCI's relaxed ordering
IB_ECE_ENABLE              2.23    1       0 switches enhanced connection establishment off
IB_USE_INLINE              -       -       1 sends small messages inline
IB_DATA_DIRECT             -       -       0 leaves Data Direct alone
IGNORE_CPU_AFFINITY        -       0       1 uses the GPU's cores, whatever the launcher said
IGNORE_NET_MISMATCH        2.30    1       0 fails where nodes have unequal numbers of NICs
IGNORE_COLLNET_MISMATCH    2.30    0       1 goes on where nodes have unequal CollNet devices
P2P_DISABLE                -       0       1 forbids direct access between GPUs
P2P_DIRECT_DISABLE         -       0       1 forbids direct access to the user's buffers
SHM_DISABLE                -       0       1 forbids shared memory
NET_GDR_READ               -       -       1 lets the NIC read from GPU memory
NET_GDR_C2C                2.26    -       1 lets the NIC use GPU memory over C2C
NET_DISABLE_INTRA          -       -       1 forbids the network inside a node
GDRCOPY_ENABLE             -       0       1 uses GDRCopy
GDRCOPY_FIFO_ENABLE        -       1       GDRCopy for the work queue
GDRCOPY_SYNC_ENABLE        -       1       GDRCopy for the proxy's counters
GDRCOPY_FLUSH_ENABLE       -       0       GDRCopy for flushes
DMABUF_ENABLE              -       1       0 leaves dma-buf alone
CUMEM_HOST_ENABLE          2.23    -       1 allocates host memory with cuMem functions
NVB_DISABLE                -       0       1 forbids a GPU between two others
MEM_SYNC_DOMAIN            -       1       memory sync domain of the kernels
SET_STACK_SIZE             -       0       1 sets the kernels' stack size at the start
SET_THREAD_NAME            -       0       1 names NCCL's threads
GRAPH_REGISTER             -       1       0 does not register buffers of CUDA graphs
GRAPH_MIXING_SUPPORT       -       1       0 forbids graphs beside other calls
GRAPH_STREAM_ORDERING      2.30    1       0 leaves the order in CUDA graphs to the program
LOCAL_REGISTER             2.19    1       0 forbids registered buffers
LEGACY_CUDA_REGISTER       2.24    0       1 registers buffers of cudaMalloc
LAUNCH_RACE_FATAL          2.26    1       0 lets threads race
IPC_USE_ABSTRACT_SOCKET    2.29    1       0 makes socket files between processes
SYM_GIN_KERNELS_ENABLE     2.29    1       0 leaves the GIN kernels alone
RMA_EAGER_INIT             2.31    0       1 makes signals at the start
UID_STAGGER_THRESHOLD      2.23    256     ranks above which start-up messages are spread
UID_STAGGER_RATE           2.23    7000    start-up messages a second
MNNVL_UUID                 2.25    -       id of the NVLink domain
MNNVL_CLIQUE_ID            2.25    -       part of the NVLink domain
RAS_ENABLE                 2.24    1       0 switches the RAS service (port 28028) off
CHECK_POINTERS             -       0       1 checks pointers in every call
NVTX_DISABLE               -       -       1 writes no NVTX ranges
REPORT_CONNECT_PROGRESS    -       -       1 logs the progress of connecting
WARN_ENABLE_DEBUG_INFO     -       0       1 logs as with INFO after the first warning
"""

_OWN_WORDS = """
SOCKET_IFNAME              -       -       interfaces: prefixes, exact names after `=`, or after `^` those left out
IB_HCA                     -       -       adapters: prefixes, exact names after `=`, or after `^` those left out
IB_ADDR_RANGE              2.21    -       range of GIDs, where NCCL chooses one
OOB_NET_IFNAME             2.23    -       interfaces of the start-up's messages
COMM_ID                    -       -       address of the first rank
HOSTID                     -       -       name of the node
P2P_LEVEL                  -       -       how near two GPUs are that access each other: LOC, NVL, PIX, PXB, PHB, SYS
NET_GDR_LEVEL              -       -       how near a NIC and a GPU are that use GPUDirect: LOC, PIX, PXB, PHB, SYS
NET_PLUGIN                 -       -       plugin for the network
GIN_PLUGIN                 2.29.3  -       plugin for networking by the GPU
RMA_PLUGIN                 2.30.7  -       plugin for one-sided operations
TUNER_PLUGIN               -       -       plugin that chooses algorithms
PROFILER_PLUGIN            -       -       plugin that profiles
ENV_PLUGIN                 2.28    -       plugin that gives variables
CONF_FILE                  2.23    -       file with variables
TOPO_FILE                  -       -       description of the node
TOPO_DUMP_FILE             -       -       file to write the node's description to
GRAPH_FILE                 -       -       rings and trees to use
GRAPH_DUMP_FILE            -       -       file to write rings and trees to
DEBUG                      -       -       what is logged: VERSION, WARN, INFO or TRACE
DEBUG_LEVELS               2.32    -       further levels that are logged
DEBUG_FILE                 -       -       file of the log; %h is the host, %p the process
DEBUG_SUBSYS               -       -       parts of NCCL that are logged
DEBUG_TIMESTAMP_FORMAT     2.26    -       time in the log
DEBUG_TIMESTAMP_LEVELS     2.26    -       lines with a time
RAS_ADDR                   2.24    -       address of the RAS service
RAS_TIMEOUT_FACTOR         2.24    -       factor of the RAS service's time-outs
PROXY_CPUSET               -       -       cores of the proxy threads
LAUNCH_MODE                -       -       how kernels are launched
NO_CACHE                   -       -       variables that are read each time
"""

CATALOGUE: dict[str, Variable] = {
    variable.name: variable
    for rows in (
        _numbers(_EQUAL_NUMBERS, equal=True),
        _words(_EQUAL_WORDS, equal=True),
        _numbers(_OWN_NUMBERS),
        _words(_OWN_WORDS),
    )
    for variable in rows
}
"""NCCL's documented variables, and a few others that matter, by name."""

DEBUG_LEVELS = ("VERSION", "WARN", "ATTN", "INFO", "ABORT", "TRACE")
SUBSYSTEMS = (
    *("INIT", "COLL", "P2P", "SHM", "NET", "GRAPH", "TUNING", "ENV", "ALLOC", "ALLOC_HOST", "CALL", "PROXY"),
    *("NVLS", "BOOTSTRAP", "REG", "PROFILE", "RAS", "DESTROY", "ALL"),
)
"""Words that NCCL_DEBUG and NCCL_DEBUG_SUBSYS know."""

_UNDOCUMENTED = """
COMM_SHRINK_SHARE_RESOURCES COMM_SPLIT_SHARE_RESOURCES CONNECT_ROUND_MAX_PEERS CREATE_THREAD_CONTEXT
GDR_FLUSH_DISABLE GIN_COUNTER_POOL_SIZE GIN_ENABLE GIN_ERROR_QUERY_SEC GIN_GDAKI_NIC_HANDLER GIN_GDAKI_QP_DEPTH
GIN_IB_ALLGATHER_TAG GIN_IB_ALLTOALL_TAG GIN_NCONTEXTS GIN_PROXY_QUEUE_SIZE GIN_SIGNAL_POOL_SIZE GIN_TYPE
GRAPH_DUMP_FILE_RANK GRAPH_HELPER_DISABLE GROUP_CUDA_STREAM IB_MERGE_VFS IB_MQP_RETRY_ALL IB_MQP_RETRY_CNT
IB_MQP_RETRY_SLEEP_MSEC IB_ROUTABLE_FLID_GID_INDEX IB_WARN_RAIL_LOCAL IGNORE_DISABLED_P2P
L1_SHARED_MEMORY_CARVEOUT LL128_C2C MNNVL_RAIL_PER_HOST MNNVL_SCATTER_NETS_ENABLE NET_FORCE_MERGE
NET_OPTIONAL_RECV_COMPLETION NET_OVERHEAD NET_PLUGIN_REF_COUNT NVB_PRECONNECT NVLINK_UTIL_CENTRIC_SCHED_ENABLE
P2P_NVL_CHUNKSIZE P2P_PCI_CHUNKSIZE P2P_READ_ENABLE P2P_SCHEDULE_GROUP_SIZE P2P_USE_CUDA_MEMCPY
PROGRESS_APPENDOP_FREQ PROXY_APPEND_BATCH_SIZE PROXY_DUMP_SIGNAL SET_CPU_STACK_SIZE SHM_LOCALITY SHM_MEMCPY_MODE
SHM_USE_CUDA_MEMCPY SINGLE_PROC_MEM_REG_ENABLE SOCKET_INLINE SOCKET_MIN_TASKSIZE SYM_CTAS SYM_KERNEL
THREAD_THRESHOLDS TOPO_DUMP_FILE_RANK UNPACK_DOUBLE_NCHANNELS WIN_STRIDE WORK_ARGS_BYTES WORK_FIFO_BYTES
"""

UNDOCUMENTED = frozenset(f"NCCL_{name}" for name in _UNDOCUMENTED.split())
"""Names that the library has and its documentation does not."""
