package mesh

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/discovery"
)

// known are instances that do not change until changed says so.
type known struct {
	list    []discovery.Instance
	changed chan []discovery.Instance
}

func (k *known) Watch(ctx context.Context, _ discovery.Query, update func([]discovery.Instance, error)) {
	update(k.list, nil)
	for {
		select {
		case list := <-k.changed:
			update(list, nil)
		case <-ctx.Done():
			return
		}
	}
}

// Long connections stay where they are; one that comes back gets the next ones
// until it has as many as the others.
func TestDialGoesWhereTheFewestAre(t *testing.T) {
	all := []discovery.Instance{{ID: "a", Address: "a:1"}, {ID: "b", Address: "b:1"}, {ID: "c", Address: "c:1"}}
	watcher := &known{list: all, changed: make(chan []discovery.Instance)}
	in := newInstances(t.Context(), watcher, discovery.Query{})
	defer in.close()
	down := map[string]bool{}
	open := map[string]int{}
	dial := func() (string, net.Conn) {
		t.Helper()
		var at string
		conn, err := in.dial(t.Context(), "device", "", "", func(_ context.Context, address string) (net.Conn, error) {
			if down[address] {
				return nil, errors.New("refused")
			}
			at = address
			here, there := net.Pipe()
			there.Close()
			return here, nil
		})
		require.NoError(t, err)
		open[at]++
		return at, conn
	}
	of := map[string][]net.Conn{}
	for range 30 {
		at, conn := dial()
		of[at] = append(of[at], conn)
	}
	require.Equal(t, map[string]int{"a:1": 10, "b:1": 10, "c:1": 10}, open)

	// One ends, and its connections go to the others.
	down["b:1"] = true
	for _, conn := range of["b:1"] {
		require.NoError(t, conn.Close())
		require.NoError(t, conn.Close(), "a second time")
	}
	delete(open, "b:1")
	for range 10 {
		dial()
	}
	require.Equal(t, map[string]int{"a:1": 15, "c:1": 15}, open)

	down["b:1"] = false
	for range 15 {
		dial()
	}
	require.Equal(t, map[string]int{"a:1": 15, "b:1": 15, "c:1": 15}, open)

	// Without instances it waits, and then takes what is there.
	watcher.changed <- []discovery.Instance{}
	go func() {
		time.Sleep(20 * time.Millisecond)
		watcher.changed <- all[2:]
	}()
	at, _ := dial()
	require.Equal(t, "c:1", at)
}
