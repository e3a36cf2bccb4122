package netlab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// WANConfig is what a distance does to packets, in each direction alike.
type WANConfig struct {
	Delay time.Duration // of each packet: half of what the round trip takes longer
	Loss  float64       // the part of packets that gets lost, 0 to 1
	Seed  uint64        // of the losses
	// Queue is how many packets may be under way in a direction; more are lost. 0
	// means 10,000.
	Queue int
}

// WAN is a distance between two hosts. Its methods may be called from any goroutine.
type WAN struct {
	config atomic.Pointer[WANConfig]
	ends   []*os.File
	pumps  sync.WaitGroup
	lost   atomic.Int64
	passed atomic.Int64
}

// WAN lays a cable between two hosts like [Lab.Link], with a distance in its middle
// that goes by cfg. Packets on it have the MTU's size at most, as on a real
// distance: the hosts do not leave segmentation to anybody. The caller closes the
// WAN, before the lab.
func (l *Lab) WAN(a *Host, ifA string, addrA []netip.Prefix, b *Host, ifB string, addrB []netip.Prefix, cfg WANConfig) (*WAN, error) {
	w := new(WAN)
	w.Set(cfg)
	middle, err := l.Host("wan")
	if err != nil {
		return nil, err
	}
	for _, side := range []struct {
		host  *Host
		name  string
		addrs []netip.Prefix
		end   string
	}{{a, ifA, addrA, "a"}, {b, ifB, addrB, "b"}} {
		if err := l.Link(side.host, side.name, side.addrs, middle, side.end, nil); err != nil {
			return nil, errors.Join(err, w.Close())
		}
		if err := errors.Join(side.host.wholePackets(side.name), w.tap(middle, side.end)); err != nil {
			return nil, errors.Join(fmt.Errorf("wan between %s and %s: %w", a.name, b.name, err), w.Close())
		}
	}
	w.pumps.Go(func() { w.pump(w.ends[0], w.ends[1]) })
	w.pumps.Go(func() { w.pump(w.ends[1], w.ends[0]) })
	return w, nil
}

// Set changes the distance for packets that come from now on.
func (w *WAN) Set(cfg WANConfig) {
	if cfg.Queue == 0 {
		cfg.Queue = 10_000
	}
	w.config.Store(&cfg)
}

// Count is how many packets were passed on and lost so far.
func (w *WAN) Count() (passed, lost int64) { return w.passed.Load(), w.lost.Load() }

// Close ends the distance; no packet crosses any more.
func (w *WAN) Close() error {
	var errs []error
	for _, f := range w.ends {
		errs = append(errs, f.Close())
	}
	w.pumps.Wait()
	return errors.Join(errs...)
}

// tap opens an end in the middle.
func (w *WAN) tap(middle *Host, ifname string) error {
	return middle.Do(func() error {
		fd, err := packetSocket(ifname)
		if err != nil {
			return err
		}
		// Else it would read its own packets too (packet(7)).
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
			unix.Close(fd)
			return fmt.Errorf("ignore our own packets: %w", err)
		}
		w.ends = append(w.ends, os.NewFile(uintptr(fd), ifname))
		return nil
	})
}

// traveller is a packet under way.
type traveller struct {
	frame []byte
	due   time.Time
}

// pump carries one direction until an end is closed.
func (w *WAN) pump(from, to *os.File) {
	way := make(chan traveller, 1<<20) // Queue bounds it
	w.pumps.Go(func() {
		for p := range way {
			time.Sleep(time.Until(p.due))
			if _, err := to.Write(p.frame); err == nil {
				w.passed.Add(1)
			}
		}
	})
	defer close(way)
	var random *rand.Rand
	var seeded uint64
	frame := make([]byte, frameRoom)
	for {
		n, err := from.Read(frame)
		if err != nil {
			return // closed, or the lab is
		}
		cfg := w.config.Load()
		if random == nil || seeded != cfg.Seed {
			seeded = cfg.Seed
			random = rand.New(rand.NewPCG(seeded, seeded))
		}
		if len(way) >= cfg.Queue || cfg.Loss > 0 && random.Float64() < cfg.Loss {
			w.lost.Add(1)
			continue
		}
		way <- traveller{append([]byte(nil), frame[:n]...), time.Now().Add(cfg.Delay)}
	}
}

// wholePackets has the kernel make packets that are ready for a wire: no larger
// than the MTU, with their checksums (linux/ethtool.h). Without, a veth pair
// passes on what a network card would finish.
func (h *Host) wholePackets(ifname string) error {
	return h.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, feature := range []uint32{unix.ETHTOOL_STSO, unix.ETHTOOL_SGSO, unix.ETHTOOL_SGRO, unix.ETHTOOL_STXCSUM, unix.ETHTOOL_SSG} {
			if err := ethtoolOff(fd, ifname, feature); err != nil {
				return fmt.Errorf("switch offload %#x of %s off: %w", feature, ifname, err)
			}
		}
		return nil
	})
}

// ethtoolOff sets a feature to 0 (netdevice(7), SIOCETHTOOL; struct ethtool_value).
func ethtoolOff(fd int, ifname string, feature uint32) error {
	value := struct{ cmd, data uint32 }{cmd: feature}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte // the rest of the union
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], ifname)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return errno
	}
	return nil
}
