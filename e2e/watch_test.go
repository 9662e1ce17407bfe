package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/platform/stack"
)

// told are the lines that somebody who watches is told.
type told struct {
	who   string
	lines chan string
}

// hears reads lines until there are no more.
func hears(who string, from io.Reader) *told {
	w := &told{who: who, lines: make(chan string, 1000)}
	go func() {
		defer close(w.lines)
		for lines := bufio.NewScanner(from); lines.Scan(); {
			w.lines <- lines.Text()
		}
	}()
	return w
}

// wait waits for a line with all of the words, and says how long it took.
func (w *told) wait(t *testing.T, within time.Duration, words ...string) time.Duration {
	t.Helper()
	began := time.Now()
	timeout := time.After(within)
	for {
		select {
		case line, more := <-w.lines:
			require.True(t, more, "%s ended before it was told of %q", w.who, words)
			all := true
			for _, word := range words {
				all = all && strings.Contains(line, word)
			}
			if all {
				return time.Since(began)
			}
		case <-timeout:
			require.Fail(t, "not told", "%s was not told of %q within %s", w.who, words, within)
		}
	}
}

// A display is watched with the command and over REST, through the gateways: it
// connects, plays, its instance dies, and so does a gateway, and the command goes on.
func TestWatch(t *testing.T) {
	ctx := begin(t, 4*time.Minute)
	o := newOwner(t, ctx)
	d := o.enrol(t, ctx)
	put := func(name string) {
		t.Helper()
		items := []any{map[string]any{
			"creativeId": "spring-sale", "url": "https://media.example.com/" + name, "sha256": strings.Repeat("0", 64), "mediaType": "image/png", "durationMs": 10000,
		}}
		_, err := o.doors.REST.Do(ctx, load.Request{
			Method: http.MethodPut, Path: o.on("/" + d.id + "/playlist"), Token: o.token, Body: map[string]any{"items": items}, Idempotent: true,
		}, nil)
		require.NoError(t, err)
	}
	put("one.png")
	found := brokers(t, ctx)
	require.Len(t, found, 2)
	t.Cleanup(func() {
		if d.client != nil {
			d.client.Disconnect(0)
		}
	})

	program := filepath.Join(the.root, ".marquee", "bin", "marquee")
	command := exec.CommandContext(ctx, program, "--cluster", "e2e", "watch", "devices", "--organisation", o.organisation, "--token", o.token)
	command.Stderr = os.Stderr
	out, err := command.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, command.Start(), "make e2e builds it")
	t.Cleanup(func() { _ = command.Process.Kill() }) // unless it has ended
	person := hears("marquee watch devices", out)
	person.wait(t, 20*time.Second, d.id, "claimed", "playlist 1")
	person.wait(t, 5*time.Second, "1 devices, 0 online")
	rest := overHTTP(t, ctx, o)
	rest.wait(t, 10*time.Second, `"status"`, d.id, `"playlistVersion":"1"`)
	rest.wait(t, 5*time.Second, `"snapshotComplete"`)

	connect := func(i instance) {
		t.Helper()
		_, err := d.connect(i.address)
		require.NoError(t, err)
		person.wait(t, 5*time.Second, d.id, "online since")
	}
	connect(found[0])
	rest.wait(t, 5*time.Second, `"status"`, d.id, `"online":true`)
	d.play(3)
	d.handIn(t, "batch")
	for range 3 {
		person.wait(t, 5*time.Second, d.id, "played spring-sale")
	}
	rest.wait(t, 5*time.Second, `"plays"`, d.id, `"counted":true`)
	put("two.png")
	rest.wait(t, 5*time.Second, `"status"`, d.id, `"playlistVersion":"2"`)
	person.wait(t, 5*time.Second, d.id, "playlist 2")

	dead := map[string]int{}
	for alloc, pid := range processes(t, "deviced") {
		if strings.Contains(found[0].id, alloc) {
			dead[alloc] = pid
			require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		}
	}
	require.Len(t, dead, 1, "the process of %s", found[0].id)
	took := person.wait(t, 10*time.Second, d.id, "offline since")
	t.Logf("killed the instance: told after %.1f s", took.Seconds())
	require.Less(t, took, 6*time.Second)
	connect(found[1])
	recovery(t, ctx, "device", "deviced", 2, dead)

	dead = kill(t, "gatewayd", 1)
	put("three.png")
	person.wait(t, 15*time.Second, d.id, "playlist 3")
	recovery(t, ctx, "gateway", "gatewayd", 2, dead)

	require.NoError(t, command.Process.Signal(syscall.SIGINT))
	require.NoError(t, command.Wait(), "Ctrl-C ends it without an error")
}

// overHTTP watches through a gateway's REST door.
func overHTTP(t *testing.T, ctx context.Context, o *owner) *told {
	t.Helper()
	gateways, _, err := stack.Gateways(ctx, the.Cluster().Consul(), 0)
	require.NoError(t, err)
	require.NotEmpty(t, gateways)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s%s:watch", gateways[0].HTTP, o.on("")), http.NoBody)
	require.NoError(t, err)
	request.Header.Set("Authorization", "Bearer "+o.token)
	response, err := http.DefaultClient.Do(request)
	require.NoError(t, err)
	t.Cleanup(func() { response.Body.Close() })
	require.Equal(t, http.StatusOK, response.StatusCode)
	return hears("GET :watch", response.Body)
}
