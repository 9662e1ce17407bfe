package devices

import (
	"context"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// deaf is an instance that reads nothing, and says as much as it gets rid of. It
// tells how much that is.
func deaf(t *testing.T) (at net.Listener, said *atomic.Int64) {
	t.Helper()
	at, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	said = &atomic.Int64{}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := at.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(3 * patience))
				for chunk := make([]byte, 32<<10); ; {
					n, err := conn.Write(chunk)
					said.Add(int64(n))
					if err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() { at.Close(); running.Wait() })
	return at, said
}

// Displays that read nothing, and instances that do not, hold up themselves: what
// the other end says is not piled up, others are served, and the door closes in time.
func TestSlow(t *testing.T) {
	const slow = 10
	instances, said := deaf(t)
	well := to(instance(t))
	var dials atomic.Int64
	door, address := open(t, 0, func(ctx context.Context) (net.Conn, error) {
		if dials.Add(1) <= slow {
			return to(instances)(ctx)
		}
		return well(ctx)
	})
	var flooding sync.WaitGroup
	var sent atomic.Int64
	for range slow {
		conn, err := net.Dial("tcp", address)
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		flooding.Go(func() {
			for chunk := make([]byte, 32<<10); ; {
				n, err := conn.Write(chunk)
				sent.Add(int64(n))
				if err != nil {
					return
				}
			}
		})
	}
	// Until neither gets rid of any more.
	for last, since := int64(-1), time.Now(); time.Since(since) < 300*time.Millisecond; time.Sleep(10 * time.Millisecond) {
		if now := sent.Load() + said.Load(); now != last {
			last, since = now, time.Now()
		}
	}
	require.Positive(t, sent.Load())
	require.Positive(t, said.Load())
	// What the kernel holds of each of the four ends, and a chunk each way.
	require.Less(t, sent.Load()+said.Load(), int64(slow*4*(8<<20)), "what is not read piles up")

	conn, _ := come(t, address)
	for range 100 {
		began := time.Now()
		_, err := io.WriteString(conn, "x")
		require.NoError(t, err)
		_, err = io.ReadFull(conn, make([]byte, 1))
		require.NoError(t, err)
		require.Less(t, time.Since(began), time.Second, "others wait for those that do not read")
	}
	require.NoError(t, stop(t, door, 2*time.Second))
	flooding.Wait()
}

// Connections that say nothing are passed on as others are, and take nobody's turn.
func TestSilent(t *testing.T) {
	const silent = 500
	door, address := open(t, 0, to(instance(t)))
	for range silent {
		conn, err := net.Dial("tcp", address)
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
	}
	began := time.Now()
	conn, seen := come(t, address)
	require.Equal(t, conn.LocalAddr().String(), seen)
	require.Less(t, time.Since(began), patience/2)
	require.NoError(t, stop(t, door, 2*time.Second))
}
