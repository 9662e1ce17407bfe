// Package freeport finds ports for servers that a test starts.
package freeport

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

const (
	// first and last are above the ports that Linux gives to outgoing
	// connections, so that a server that is started again finds its own free.
	first, last = 61000, 65500
	attempts    = 1000
	// claimed is the loopback address whose port says that the same one of
	// 127.0.0.1 is taken: the kernel gives it back when the process ends, however
	// it ends. Where there is no such address, only this process knows.
	claimed = "127.77.77.77"
)

var (
	mu     sync.Mutex
	claims = map[int]net.Listener{} // held until the process ends
)

// Take returns n ports of 127.0.0.1 that are free for TCP and UDP, and that no
// other call returns, here or in another process, until this process ends.
func Take(n int) ([]int, error) {
	mu.Lock()
	defer mu.Unlock()
	var taken []int
	for range attempts {
		if len(taken) == n {
			return taken, nil
		}
		port := first + rand.IntN(last-first)
		if _, ours := claims[port]; ours || !free(port) {
			continue
		}
		claim, err := net.Listen("tcp", net.JoinHostPort(claimed, strconv.Itoa(port))) //nolint:noctx // returns at once
		if err != nil && claimable() {
			continue
		}
		claims[port] = claim
		taken = append(taken, port)
	}
	return nil, fmt.Errorf("no %d free ports between %d and %d on 127.0.0.1", n, first, last)
}

func free(port int) bool {
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	tcp, err := net.Listen("tcp", address) //nolint:noctx // returns at once
	if err != nil {
		return false
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", address) //nolint:noctx // returns at once
	if err != nil {
		return false
	}
	return udp.Close() == nil
}

// claimable says whether there is an address to claim ports at.
var claimable = sync.OnceValue(func() bool {
	l, err := net.Listen("tcp", claimed+":0")
	return err == nil && l.Close() == nil
})
