package cluster

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A cluster's ports, counted from its first.
const (
	portConsulHTTP    = 0
	portConsulGRPC    = 1
	portConsulSerfLAN = 2
	portConsulSerfWAN = 3
	portConsulServer  = 4
	portNomadHTTP     = 10
	portNomadRPC      = 11
	portNomadSerf     = 12
	portNomadClient   = 13
	portDynamicFirst  = 100
	portDynamicLast   = 999
)

// Blocks lie below the range from which Linux takes ports for outgoing
// connections (32768 and up by default).
const (
	firstBlock = 10000
	lastBlock  = 31000
	blockSize  = 1000
)

// PortInUseError says that an agent's port is taken.
type PortInUseError struct {
	Port   int
	For    string // what wants it, for example "Consul's HTTP API"
	Holder string // who has it
}

func (e *PortInUseError) Error() string {
	return fmt.Sprintf("port %d (%s) is in use by %s: end that process, or remove the cluster (down --wipe) to get other ports", e.Port, e.For, e.Holder)
}

func (c *Cluster) port(offset int) int { return c.state.PortBase + offset }

func (c *Cluster) addr(offset int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(c.port(offset)))
}

// choosePorts takes the wanted block, or the first one in which nobody listens
// and which no other cluster of this checkout has taken. Two clusters that start
// for the first time at the same moment are kept apart by the claim, an abstract
// socket that lives until the process ends; by then the agents listen.
func (c *Cluster) choosePorts(ctx context.Context) (int, error) {
	if base := c.cfg.PortBase; base != 0 {
		if base < 1024 || base+blockSize > 1<<16 {
			return 0, fmt.Errorf("the port block %d is not within 1024 to 65535", base)
		}
		return base, nil
	}
	listening, err := listeners()
	if err != nil {
		return 0, fmt.Errorf("look for free ports: %w", err)
	}
	taken := map[int]bool{}
	for _, l := range listening {
		taken[l.port/blockSize*blockSize] = true
	}
	others, err := filepath.Glob(filepath.Join(filepath.Dir(c.cfg.Dir), "*", "state.json"))
	if err != nil {
		return 0, err
	}
	for _, file := range others {
		if other, err := Open(Config{Dir: filepath.Dir(file)}); err == nil {
			taken[other.state.PortBase] = true
		}
	}
	for base := firstBlock; base <= lastBlock; base += blockSize {
		if taken[base] {
			continue
		}
		var lc net.ListenConfig
		claim, err := lc.Listen(ctx, "unix", fmt.Sprintf("@marquee-ports-%d", base))
		if err != nil {
			continue
		}
		c.mu.Lock()
		c.claim = claim
		c.mu.Unlock()
		return base, nil
	}
	return 0, fmt.Errorf("no block of %d free ports between %d and %d: somebody listens in each of them", blockSize, firstBlock, lastBlock+blockSize)
}

// unclaim gives the claim back, once the agents listen or have failed to.
func (c *Cluster) unclaim() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.claim != nil {
		c.claim.Close()
		c.claim = nil
	}
}

// checkFree says who holds a port that an agent is about to listen on.
func checkFree(ctx context.Context, port int, udp bool, what string) error {
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err == nil {
		l.Close()
		if !udp {
			return nil
		}
		var p net.PacketConn
		if p, err = lc.ListenPacket(ctx, "udp", address); err == nil {
			_ = p.Close()
			return nil
		}
	}
	return &PortInUseError{Port: port, For: what, Holder: holder(port)}
}

// listener is one socket that waits for connections or datagrams.
type listener struct {
	port  int
	inode string
}

// listeners are all sockets of this network namespace that listen.
func listeners() ([]listener, error) {
	const tcpListen, udpUnconnected = "0A", "07"
	var found []listener
	for file, state := range map[string]string{"tcp": tcpListen, "tcp6": tcpListen, "udp": udpUnconnected, "udp6": udpUnconnected} {
		f, err := os.Open("/proc/net/" + file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // no IPv6 here
		}
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
			fields := strings.Fields(lines.Text())
			if len(fields) < 10 || fields[3] != state {
				continue
			}
			_, port, _ := strings.Cut(fields[1], ":")
			if raw, err := hex.DecodeString(port); err == nil && len(raw) == 2 {
				found = append(found, listener{port: int(raw[0])<<8 | int(raw[1]), inode: fields[9]})
			}
		}
		f.Close()
		if err := lines.Err(); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// holder describes the process that listens on a port.
func holder(port int) string {
	listening, err := listeners()
	if err != nil {
		return "an unknown process"
	}
	inodes := map[string]bool{}
	for _, l := range listening {
		if l.port == port {
			inodes["socket:["+l.inode+"]"] = true
		}
	}
	if len(inodes) == 0 {
		return "a connection that has not ended yet"
	}
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return "an unknown process"
	}
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil && inodes[target] {
			pid := strings.Split(fd, "/")[2]
			cmdline, err := os.ReadFile("/proc/" + pid + "/cmdline")
			if err != nil {
				continue
			}
			return fmt.Sprintf("process %s: %s", pid, shorten(strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " ")), 200))
		}
	}
	return "another user's process"
}

func shorten(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}
