// Package netlab builds small networks out of Linux network namespaces, as root or as an ordinary user.
//
// A program calls [Enter] before anything else and goes on in a world of its own; [New] makes a laboratory
// in it, [Lab.Host] a host (a network namespace), [Lab.Link] a cable (a veth pair) between two. Code visits
// a host with [Host.Do], commands live on it through [Host.Start], sockets made by [Host.Listen] and
// [Host.Dial] stay on it, and [Host.Capture] reads what crosses one of its interfaces. [NewWorld] is the
// network most tests want:
//
//	client ────── west ══════════════════ east ────── server
//	10.1.0.2   10.1.0.1                10.2.0.1     10.2.0.2
//	fd00:1::2  fd00:1::1               fd00:2::1    fd00:2::2
//	             192.0.2.10       192.0.2.20
//	             2001:db8::10   2001:db8::20
//
// Everything goes through the kernel's own interfaces; no program (ip, nft, sysctl) is needed. Nothing
// outlives the process: namespaces end with their last process, and the whole lab is a PID namespace whose
// first process is the program itself, so that the kernel kills the rest, kill -9 included.
//
// What it does not do: no name resolution, no delays or losses on its cables, no users but one (an ordinary
// user is root inside, and nobody else exists), no file system of its own besides /proc. It does not wait
// for orphans: a daemon's remains are zombies until the lab ends. Linux only.
package netlab
