// Package engine moves the bytes: loops that own sockets, tunnels and the
// flows between them.
//
// A [Loop] is one goroutine with its own epoll. Everything that
// belongs to it (its tunnels, their streams, the sockets at their ends, its
// timers) is touched by that goroutine only; nothing is locked, and no flow has a
// goroutine. Other goroutines reach a loop by [Loop.Post]. Only a loop closes
// its descriptors, and takes them out of the epoll first where a duplicate may live on.
//
// A [Tunnel] is a TLS session with an hbone.Conn on it. A [Flow] joins one of
// its streams to a socket and copies both ways until both directions have
// ended, keeping half-closes and resets as they are: through a pair of loops both
// ends see what they would see of each other directly. Two things do not cross:
// TCP's urgent pointer (its byte does), and that a server refuses: the client is
// connected by then, and sees a reset.
//
// The package knows nothing of peers, routes or policy: what has to be decided
// is asked of the [TunnelHandler] and the [FlowHandler].
package engine
