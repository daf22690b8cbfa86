"""The daemon's own numbers, with their units: how it shares its time between peers. What a peer may have is in ``protocol.limits``."""

from __future__ import annotations

SLICE_WORK = 4096  #: units of `broker.effort` in one go for peers that cost much, while nobody else wants anything: about 1 ms
SHARED_SLICE_WORK = 512  #: while somebody does: he waits for so much at most, and not much longer than without them
SHARED_S = 0.1  #: how long after he was served: who asks ten times a second finds the slices small each time
BYTES_A_UNIT = 256  #: of a read: what copying them out of the kernel costs, and into it
READ_MIN_BYTES = 4096  #: of one read of a peer whose messages are expensive for many
WRITE_BYTES = 1_048_576  #: to one peer in one round: several socket buffers, yet a fast reader of a long queue cannot keep the loop
WRITE_PASSES = 4  #: a write may free queues and so make more output; after this many passes the loop looks at its sockets again
IOV_MAX = 1024  #: buffers of one sendmsg; the kernel's limit
JOIN_BYTES = 2048  #: waiting pieces below this are joined: a bytes object for each would cost more than it holds
JOIN_PIECES = 8  #: more pieces than this that are small on average are joined before they are written
CHUNK_BYTES = 65_536  #: how much of them is joined into one object
CLOSE_FLUSH_S = 2.0  #: how long a peer that is being closed may take to read what it is still due
DRAIN_INTERRUPT_S = 1.0  #: SIGINT: somebody waits at a terminal
RECLAIM_AFTER_S = 3.0  #: how long after something waited for a slow reader the daemon looks what memory it can give back
RECLAIM_BYTES = 8 * 1024 * 1024  #: less than this is not worth a walk over the heap
CLOSE_DRAIN_READS = 8  #: reads before a close, so that unread input does not turn the last words into a reset

BACKLOG = 4096  #: connections that the kernel queues; more than somaxconn is cut by the kernel
ACCEPT_BATCH = 16  #: connections accepted from one listener in one round, so that a storm does not starve the peers
REFUSE_BATCH = 64  #: connections that are told in one round that there is no file descriptor for them
ACCEPT_PAUSE_S = 0.2  #: how long no listener is looked at when the process has no file descriptor left
DESCRIPTORS_SPARE = 8  #: which no connection gets: to refuse one more with, to read the configuration again, for a module's late import
DESCRIPTORS_USED = 24  #: by the daemon itself, where the kernel does not say
SELECT_MAX_FD = 1024  #: FD_SETSIZE: select(2) cannot hold this file descriptor or a higher one

WAIT_MAX_S = 3600.0  #: one wait for sockets: poll(2) takes milliseconds in an int; a wait that is over too early is begun anew
FAULTS_MAX = 100  #: rounds in a row that a fault ended early; after so many the daemon is no use to anybody, and ends
RETRY_S = 0.2  #: when a timer whose callback failed is tried again
WARM_UP_BYTES = 4 * 1024 * 1024  #: see loop.warm_up

CONFIG_FILE_MAX_BYTES = 1_048_576  #: of the configuration file, and of each file of the policy
TCP_TABLE_MAX_BYTES = 524_288  #: of /proc/net/tcp: some 3 500 sockets, which takes the kernel some milliseconds to write
SECRETS_MAX = 1000  #: named ones: each is read at a start and a reload
POLICY_FILES_MAX = 1000  #: in each directory of the policy: far above what a system has of packages with services

DENIALS_TELL_S = 60.0  #: the log tells of connections that a user may not make when it begins, and then once in so long
DENIALS_USERS = 64  #: of whom it tells one by one in that time; of all others together

LOG_WRITE_BYTES = 4096  #: PIPE_BUF: a pipe that is writable takes this much without waiting
LOG_BURST_LINES = 500  #: a peer that makes the bus log cannot fill the disk: this many at once …
LOG_LINES_PER_S = 50.0  #: … and this many after it; the rest is counted and told in one line
