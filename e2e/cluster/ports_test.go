package cluster

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/marquee-ads/marquee/e2e/cluster/box"
	"github.com/marquee-ads/marquee/e2e/scenario"
	"github.com/marquee-ads/marquee/platform/keys"
	"github.com/marquee-ads/marquee/platform/tools"
)

// Every port of every machine is tried from outside, and the open ones are those
// that are written down; every port that something listens on is tried with
// patience, too.
func testOpenPorts(t *testing.T, ctx context.Context, c *cluster) {
	root, err := tools.Root()
	require.NoError(t, err)
	written, err := scenario.WrittenPorts(root)
	require.NoError(t, err)
	seen := map[int]bool{}
	for _, n := range c.machines {
		roles := []string{"servers"}
		if n.spec.Role == keys.Client {
			roles = []string{"clients", "edge"}
		}
		found, err := open(ctx, c.stranger, n.Address())
		require.NoError(t, err)
		listening := listeners(t, ctx, n)
		require.NotEmpty(t, listening, "something listens on %s", n.Name())
		found = append(found, c.knock(ctx, n, listening)...)
		slices.Sort(found)
		found = slices.Compact(found)
		t.Logf("%s: %d ports are listened on, open from outside: %v", n.Name(), len(listening), found)
		for _, port := range found {
			require.True(t, written.TCP(port, "everyone", roles...), "%s has port %d open to everyone, and it is not written down so", n.Name(), port)
			seen[port] = true
		}
	}
	require.Equal(t, []int{devicePort, httpPort, grpcPort}, slices.Sorted(maps.Keys(seen)), "the gateways' doors are open")
}

// listeners are the TCP ports that something listens on, at any address but
// loopback.
func listeners(t *testing.T, ctx context.Context, n *node) []int {
	t.Helper()
	out, err := n.Run(ctx, "", "cat", "/proc/net/tcp", "/proc/net/tcp6")
	require.NoError(t, err)
	ports := map[int]bool{}
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		const listen = "0A"
		if len(fields) < 4 || fields[3] != listen {
			continue
		}
		address, port, _ := strings.Cut(fields[1], ":")
		number, err := strconv.ParseInt(port, 16, 32)
		require.NoError(t, err)
		if raw, err := hex.DecodeString(address); err == nil && len(raw) == 4 && raw[3] == 127 {
			continue // written in the other byte order
		}
		ports[int(number)] = true
	}
	return slices.Sorted(maps.Keys(ports))
}

// knock connects to ports of a machine from outside as anybody would, and
// returns those on which that worked.
func (c *cluster) knock(ctx context.Context, n *node, ports []int) []int {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	var all sync.WaitGroup
	var mu sync.Mutex
	var found []int
	for _, port := range ports {
		all.Go(func() {
			conn, err := c.stranger.Dial(ctx, "tcp", net.JoinHostPort(n.Address().String(), strconv.Itoa(port)))
			if err != nil {
				return
			}
			conn.Close()
			mu.Lock()
			defer mu.Unlock()
			found = append(found, port)
		})
	}
	all.Wait()
	return found
}

// scanPatience is how long the last answer may take; it comes from the same host.
const scanPatience = 500 * time.Millisecond

// open tries all TCP ports of an address from a machine's place in the network:
// it sends the first packet of a connection to each, twice, and collects those
// that answer with the second. Connections made properly would take minutes.
func open(ctx context.Context, from *box.Machine, address netip.Addr) ([]int, error) {
	found := map[int]bool{}
	err := from.Within(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			return fmt.Errorf("make a raw socket: %w", err)
		}
		defer unix.Close(fd)
		for range 2 {
			for port := 1; port < 1<<16; port++ {
				if err := unix.Sendto(fd, firstPacket(from.Address(), address, port), 0, &unix.SockaddrInet4{Addr: address.As4()}); err != nil {
					return fmt.Errorf("try port %d of %s: %w", port, address, err)
				}
				if port%256 == 0 {
					collect(fd, address, found)
				}
			}
		}
		for until := time.Now().Add(scanPatience); time.Now().Before(until) && ctx.Err() == nil; {
			waiting := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			if _, err := unix.Poll(waiting, 50); err != nil && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("wait for answers: %w", err)
			}
			collect(fd, address, found)
		}
		return ctx.Err()
	})
	return slices.Sorted(maps.Keys(found)), err
}

const (
	synchronise = 0x02
	acknowledge = 0x10
	// scanPort is where the packets come from; no connection is made from it.
	scanPort = 1024
)

// firstPacket is a TCP header that asks for a connection.
func firstPacket(from, to netip.Addr, port int) []byte {
	h := make([]byte, 20)
	binary.BigEndian.PutUint16(h[0:], scanPort)
	binary.BigEndian.PutUint16(h[2:], uint16(port))
	h[12], h[13] = 5<<4, synchronise // its length in words
	binary.BigEndian.PutUint16(h[14:], 1<<14)
	source, target := from.As4(), to.As4()
	sum := uint32(unix.IPPROTO_TCP + len(h))
	for _, part := range [][]byte{source[:], target[:], h} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(h[16:], ^uint16(sum))
	return h
}

// collect notes the ports from which connections were granted.
func collect(fd int, address netip.Addr, found map[int]bool) {
	packet := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(fd, packet, 0)
		if err != nil {
			return // no more there
		}
		length := int(packet[0]&0x0f) * 4
		if n < length+20 {
			continue
		}
		h := packet[length:n]
		if netip.AddrFrom4([4]byte(packet[12:16])) == address && binary.BigEndian.Uint16(h[2:]) == scanPort && h[13] == synchronise|acknowledge {
			found[int(binary.BigEndian.Uint16(h))] = true
		}
	}
}
