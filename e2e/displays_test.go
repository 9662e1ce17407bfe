package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/scenario"
	"github.com/marquee-ads/marquee/platform/stack"
)

// displayDoors are the gateways' doors for displays.
func displayDoors(t *testing.T, ctx context.Context) (addresses []string) {
	t.Helper()
	found, _, err := stack.Gateways(ctx, the.Cluster().Consul(), 0)
	require.NoError(t, err)
	for _, g := range found {
		require.NotEmpty(t, g.Devices, "gateway %s has no door for displays", g.ID)
		addresses = append(addresses, g.Devices)
	}
	return addresses
}

// players is how many are connected to each instance of the device service, by
// the instance's id, as its metrics say.
func players(ctx context.Context) (map[string]int, error) {
	entries, _, err := the.Cluster().Consul().Health().Service("device", "", true, (&consulapi.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("finding the instances: %w", err)
	}
	found := map[string]int{}
	for _, e := range entries {
		if found[e.Service.ID], err = gauge(ctx, "http://"+e.Service.Meta["admin"]+"/metrics", "device_players_connected"); err != nil {
			return nil, err
		}
	}
	return found, nil
}

func gauge(ctx context.Context, url, name string) (value int, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, fmt.Errorf("reading metrics: %w", err)
	}
	defer response.Body.Close()
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			_, err := fmt.Sscan(text, &value)
			return value, err
		}
	}
	return 0, fmt.Errorf("%s has no %s", url, name)
}

// Displays know the addresses of the gateways and nothing else. Their connections
// are spread evenly over the instances behind; an instance dies, then a gateway,
// and the displays are back through what is left, with all that they played.
func TestDisplayDoor(t *testing.T) {
	ctx := begin(t, 4*time.Minute)
	o := newOwner(t, ctx)
	doors := displayDoors(t, ctx)
	require.Len(t, doors, 2)
	const count = 12
	displays := make([]*display, count)
	for i := range displays {
		displays[i] = o.enrol(t, ctx)
		o.do(t, ctx, http.MethodPut, o.on("/"+displays[i].id+"/playlist"), map[string]any{"items": []any{map[string]any{
			"creativeId": "spring-sale", "url": "https://media.example.com/spring-sale.png", "sha256": strings.Repeat("0", 64), "mediaType": "image/png", "durationMs": 10000,
		}}}, nil)
	}
	t.Cleanup(func() {
		for _, d := range displays {
			if d.client != nil {
				d.client.Disconnect(0)
			}
		}
	})
	before, err := players(ctx)
	require.NoError(t, err)
	for i, d := range displays {
		_, err := d.connect(doors[i%len(doors)])
		require.NoError(t, err)
	}
	where, err := players(ctx)
	require.NoError(t, err)
	require.Len(t, where, 2)
	// Each gateway spreads its own, and may still count one that has just ended.
	for id, n := range where {
		require.InDelta(t, count/2, n-before[id], 1, "connections are not spread evenly: %v, before %v", where, before)
	}

	played := 0
	play := func(batch string) {
		t.Helper()
		for _, d := range displays {
			d.play(2)
			d.handIn(t, batch)
			played += 2
		}
	}
	counted := func() {
		t.Helper()
		total := int64(0)
		for _, d := range displays {
			_, counted := o.plays(t, ctx, d.id)
			total += counted
		}
		require.EqualValues(t, played, total, "plays counted")
	}
	play("before")
	counted()

	// lose kills a process, and has the displays whose connection broke come back.
	lose := func(program, service string, alloc string, pid int, left []string) {
		t.Helper()
		for _, d := range displays {
			d.play(1) // under way
			d.publish("lost", d.kept)
			played++
		}
		died := time.Now()
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		var back sync.WaitGroup
		var mu sync.Mutex
		lost, slowest := 0, time.Duration(0)
		for _, d := range displays {
			back.Go(func() {
				select {
				case <-d.lost:
				case <-time.After(3 * time.Second): // the others notice in milliseconds
					return
				}
				d.comeBack(t, ctx, left)
				mu.Lock()
				defer mu.Unlock()
				lost++
				slowest = max(slowest, time.Since(died))
			})
		}
		back.Wait()
		require.NotZero(t, lost, "nobody was connected through %s", alloc)
		require.Less(t, lost, count, "everybody was")
		for _, d := range displays {
			d.handIn(t, "again")
		}
		counted()
		shown := scenario.Eventually(ctx, t, 5*time.Second, "all displays are shown as connected", func() error {
			for _, d := range displays {
				if online, _ := o.presence(t, ctx, d.id); !online {
					return fmt.Errorf("%s is not", d.id)
				}
			}
			return nil
		})
		_, restored := recovery(t, ctx, service, program, 2, map[string]int{alloc: pid})
		t.Logf("killed one of two of %s: %d of %d displays lost their connection, the last was back after %.1f s and shown so after another %.1f s; full strength after %.1f s",
			service, lost, count, slowest.Seconds(), shown.Seconds(), restored.Seconds())
	}
	for alloc, pid := range processes(t, "deviced") {
		lose("deviced", "device", alloc, pid, doors)
		break
	}
	for alloc, pid := range processes(t, "gatewayd") {
		// Its port may be another one afterwards: displays know both.
		found, _, err := stack.Gateways(ctx, the.Cluster().Consul(), 0)
		require.NoError(t, err)
		var left []string
		for _, g := range found {
			if !strings.Contains(g.ID, alloc) {
				left = append(left, g.Devices)
			}
		}
		require.Len(t, left, 1)
		lose("gatewayd", "gateway", alloc, pid, slices.Concat(left, doors))
		break
	}
	play("after")
	counted()
}
