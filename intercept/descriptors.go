package intercept

import "golang.org/x/sys/unix"

// reserve is how many descriptors connections leave to what serves them: tunnels
// above all, and those who ask how we do. Of a low limit it is a quarter.
const reserve = 64

// Scarce says that a descriptor is among the last that this process may have. A
// new one is always the lowest that is free (open(2)), so it tells of all others.
func Scarce(fd int) bool {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return false // then the kernel's own refusal has to do
	}
	return uint64(fd) >= limit.Cur-min(reserve, limit.Cur/4)
}

// Room says whether there are descriptors for another connection. It is for when
// the last one was scarce: it costs three system calls.
func Room(listener int) bool {
	fd, err := unix.FcntlInt(uintptr(listener), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return !Scarce(fd)
}
