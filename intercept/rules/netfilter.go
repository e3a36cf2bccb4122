package rules

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The library nftables builds messages, and we send them. Its own Flush asks
// for an acknowledgement of each: with some hundreds the socket overflows, a
// transaction that was made is called failed, and a later one that failed is
// called made. Nor does it name the object of an error.

// transact has build fill a connection with commands, and carries them out in
// the network namespace of the calling thread: all or, with an error, none.
func transact(build func(*nftables.Conn) error) error {
	batch, err := compose(build)
	if err != nil {
		return err
	}
	return send(batch)
}

// compose gives the messages of a transaction, those that begin and end it
// included.
func compose(build func(*nftables.Conn) error) ([]netlink.Message, error) {
	var batch []netlink.Message
	conn, err := nftables.New(nftables.WithTestDial(func(sent []netlink.Message) ([]netlink.Message, error) {
		if len(sent) > 0 {
			batch = sent
		}
		return nil, os.ErrPermission // the one error at which Flush does not wait for more
	}))
	if err != nil {
		return nil, fmt.Errorf("compose nftables transaction: %w", err)
	}
	if err := build(conn); err != nil {
		return nil, fmt.Errorf("compose nftables transaction: %w", err)
	}
	if err := conn.Flush(); batch == nil {
		return nil, fmt.Errorf("compose nftables transaction: %w", err)
	}
	return batch, nil
}

// A batchError is the kernel's answer to one message of a transaction.
type batchError struct {
	index int    // of the message
	what  string // it was about
	text  string // from the kernel, mostly empty
	errno unix.Errno
}

func (e *batchError) Error() string {
	if e.text != "" {
		return fmt.Sprintf("%s: %v (%s)", e.what, e.errno, e.text)
	}
	return fmt.Sprintf("%s: %v", e.what, e.errno)
}

func (e *batchError) Unwrap() error { return e.errno }

// send carries out a batch. The kernel works it off while it takes it, and has
// then answered: an error for each message that has one, or our single
// acknowledgement, for the last command.
func send(batch []netlink.Message) error {
	data, err := marshal(batch)
	if err != nil {
		return err
	}
	fd, err := openNetfilter(len(data))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, data, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send nftables transaction of %d bytes: %w", len(data), err)
	}
	return answers(fd, batch)
}

const (
	headerSize = unix.SizeofNlMsghdr
	// maxMessage, bytes, keeps every attribute of a message below 64 KiB: the
	// length of a longer one wraps around in silence.
	maxMessage = math.MaxUint16
)

// marshal puts a batch into one buffer. The sequence number of a message is its
// place.
func marshal(batch []netlink.Message) ([]byte, error) {
	var data []byte
	for i, m := range batch {
		if len(m.Data) > maxMessage {
			return nil, fmt.Errorf("%s: message of %d bytes is too long", describe(m), len(m.Data))
		}
		flags := m.Header.Flags &^ (netlink.Acknowledge | netlink.Echo)
		if i == len(batch)-2 {
			flags |= netlink.Acknowledge
		}
		data = binary.NativeEndian.AppendUint32(data, uint32(headerSize+len(m.Data)))
		data = binary.NativeEndian.AppendUint16(data, uint16(m.Header.Type))
		data = binary.NativeEndian.AppendUint16(data, uint16(flags))
		data = binary.NativeEndian.AppendUint32(data, uint32(i))
		data = binary.NativeEndian.AppendUint32(data, 0) // the kernel knows who we are
		data = append(data, m.Data...)
		data = append(data, make([]byte, -len(m.Data)&3)...)
	}
	return data, nil
}

// openNetfilter opens a socket whose send buffer takes a batch of size bytes.
// A batch cannot be sent in pieces.
func openNetfilter(size int) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return -1, fmt.Errorf("open netfilter socket (is the kernel built with nf_tables?): %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	for _, opt := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, opt, 1); err != nil {
			return -1, fmt.Errorf("prepare netfilter socket: %w", err)
		}
	}
	return fd, growBuffer(fd, size)
}

// growBuffer makes room for size bytes. Up to net.core.wmem_max anybody may,
// beyond it who has CAP_NET_ADMIN where the machine was started (socket(7)).
func growBuffer(fd, size int) error {
	size += 4096 // the kernel's own overhead
	if have, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF); err != nil || have >= size {
		return err
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, size) == nil {
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, size); err != nil {
		return fmt.Errorf("set send buffer: %w", err)
	}
	have, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil {
		return fmt.Errorf("read send buffer: %w", err)
	}
	if have < size {
		return fmt.Errorf("%d bytes of rules do not fit into a send buffer of %d: too many networks; set net.core.wmem_max to %d or more: %w",
			size, have, size, unix.EMSGSIZE)
	}
	return nil
}

// answers reads what the kernel has answered, all of which is there.
func answers(fd int, batch []netlink.Message) error {
	var errs []error
	done := false
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		switch {
		case err == unix.EINTR, err == unix.ENOBUFS: // more errors than fit: those that did are enough
			continue
		case err == unix.EAGAIN && (done || len(errs) > 0):
			return errors.Join(errs...)
		case err == unix.EAGAIN:
			return errors.New("the kernel did not answer the nftables transaction")
		case err != nil:
			return fmt.Errorf("read answer to nftables transaction: %w", err)
		}
		more, acked := parseAnswers(buf[:n], batch)
		errs, done = append(errs, more...), done || acked
	}
}

// parseAnswers reads messages of type NLMSG_ERROR (netlink(7)); errno 0 is an
// acknowledgement.
func parseAnswers(b []byte, batch []netlink.Message) (errs []error, acked bool) {
	for len(b) >= headerSize+4 {
		size := int(binary.NativeEndian.Uint32(b))
		if size < headerSize+4 || size > len(b) {
			break
		}
		if binary.NativeEndian.Uint16(b[4:]) == unix.NLMSG_ERROR {
			errno := -int32(binary.NativeEndian.Uint32(b[headerSize:]))
			index := int(binary.NativeEndian.Uint32(b[8:]))
			if errno == 0 {
				acked = true
			} else {
				e := &batchError{index: index, errno: unix.Errno(errno), text: extendedText(b[:size]), what: "nftables transaction"}
				if index > 0 && index < len(batch)-1 {
					e.what = describe(batch[index])
				}
				errs = append(errs, e)
			}
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return errs, acked
}

// extendedText is the kernel's own explanation, behind the header of the
// message that it is about (NLMSGERR_ATTR_MSG, linux/netlink.h).
func extendedText(b []byte) string {
	const attrMessage, flagAckTLVs = 1, 0x200
	skip := headerSize + 4 + headerSize
	if binary.NativeEndian.Uint16(b[6:])&flagAckTLVs == 0 || len(b) < skip {
		return ""
	}
	ad, err := netlink.NewAttributeDecoder(b[skip:])
	if err != nil {
		return ""
	}
	for ad.Next() {
		if ad.Type() == attrMessage {
			return ad.String()
		}
	}
	return ""
}

// describe says what a message of nf_tables is about, from its first
// attributes: "add rule in chain pre".
func describe(m netlink.Message) string {
	names := attributeNames(m)
	kind := uint16(m.Header.Type) & 0xff
	switch kind {
	case unix.NFT_MSG_NEWTABLE:
		return "add table " + names[unix.NFTA_TABLE_NAME]
	case unix.NFT_MSG_DELTABLE:
		return "delete table " + names[unix.NFTA_TABLE_NAME]
	case unix.NFT_MSG_NEWCHAIN:
		return "add chain " + names[unix.NFTA_CHAIN_NAME]
	case unix.NFT_MSG_NEWRULE:
		return "add rule in chain " + names[unix.NFTA_RULE_CHAIN]
	case unix.NFT_MSG_DELRULE:
		return "flush table " + names[unix.NFTA_RULE_TABLE]
	case unix.NFT_MSG_NEWSET:
		return "add set " + names[unix.NFTA_SET_NAME]
	case unix.NFT_MSG_NEWSETELEM:
		return "add elements to set " + names[unix.NFTA_SET_ELEM_LIST_SET]
	case unix.NFT_MSG_DELSETELEM:
		return "delete elements of set " + names[unix.NFTA_SET_ELEM_LIST_SET]
	case unix.NFT_MSG_NEWOBJ:
		return "add counter " + names[unix.NFTA_OBJ_NAME]
	}
	return fmt.Sprintf("nftables message %d", kind)
}

// attributeNames are the first attributes of a message, among them all names,
// by type.
func attributeNames(m netlink.Message) map[uint16]string {
	const nfgenmsg = 4 // bytes: struct nfgenmsg comes first
	names := map[uint16]string{}
	if len(m.Data) < nfgenmsg {
		return names
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[nfgenmsg:])
	if err != nil {
		return names
	}
	for ad.Next() {
		if ad.Type() <= unix.NFTA_CHAIN_NAME {
			names[ad.Type()] = ad.String()
		}
	}
	return names
}
