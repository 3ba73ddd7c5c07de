"""ZeroMQ sockets, configured: the only package that knows socket options.

socket    learner        worker    port      what for
control   ROUTER         DEALER    base      membership, snapshots, queries; both ways
weights   PUB            SUB       base + 1  the newest version only (CONFLATE)
episodes  PULL           PUSH      base + 2  completed episodes
step      ROUTER         DEALER    base + 3  one action a slot and what came of it, in synchronous mode

Each message is a single frame: CONFLATE needs it, and closing a PULL amid multipart messages aborts processes
(libzmq#3442). Never ZMQ_HEARTBEAT on a socket that can back up: it loses messages (libzmq#3937, #4767).
Heartbeats are messages over control; dead connections are found by TCP keepalive. A frame above MAXMSGSIZE
disconnects its sender and takes queued ones with it, so `codec.encode` checks first.

With a `KeyPair` a learner's sockets speak CURVE alone, and let in whom `protocol.zap` admits. Every frame
then names its sender's key: see `frames.receive_keyed`.
"""

import zmq

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]
