package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/services/device"
)

// tell sends a command to a display and waits until it is answered.
func (w *world) tell(t *testing.T, id, request string, i device.Instruction) device.Command {
	t.Helper()
	sent, err := w.SendCommand(t.Context(), "acc_1", request, organisation, id, i)
	require.NoError(t, err)
	return w.answered(t, sent)
}

func (w *world) answered(t *testing.T, sent device.Command) (now device.Command) {
	t.Helper()
	require.Eventually(t, func() bool {
		var err error
		now, err = w.FindCommand(t.Context(), organisation, sent.DeviceID, sent.ID)
		return err == nil && now.State != device.Queued && now.State != device.Sent
	}, patience, 10*time.Millisecond, "%s is not answered", sent.Kind)
	return now
}

// TestCommands has a display do each kind of command, and keep to a takedown when it
// is killed and comes back without a network.
func TestCommands(t *testing.T) {
	w := newWorld(t)
	stop := w.serve(t)
	id, code := w.create(t, "1")
	w.put(t, id, w.item("long", 10*time.Second, false))
	dir := t.TempDir()
	p := start(t, "--dir", dir, "--server", w.address, "--gateway", w.gateway.URL, "--claim-code", code)
	p.waitFor(t, "shows long")

	require.Equal(t, device.Done, w.tell(t, id, "identify-1", device.Instruction{Kind: device.Identify, Duration: 3 * time.Second}).State)
	p.waitFor(t, id+" identifies itself for 3s")
	declined := w.tell(t, id, "screenshot-1", device.Instruction{Kind: device.Screenshot})
	require.Equal(t, device.Declined, declined.State)
	require.Contains(t, declined.Detail, "no picture")

	// The database is not what it was: the versions in it are lower.
	_, err := w.db.Pool().Exec(t.Context(), "UPDATE playlists SET version = 1, items = '[]'")
	require.NoError(t, err)
	version := w.put(t, id, w.item("long", 10*time.Second, false), w.item("red", 50*time.Millisecond, false))
	require.EqualValues(t, 2, version)
	_, err = w.db.Pool().Exec(t.Context(), "UPDATE playlists SET version = 1")
	require.NoError(t, err)
	require.Equal(t, device.Done, w.tell(t, id, "refresh-1", device.Instruction{Kind: device.Refresh}).State)
	kept := func() string {
		text, _ := os.ReadFile(filepath.Join(dir, id, "playlist.json"))
		return string(text)
	}
	require.Eventually(t, func() bool { return strings.Contains(kept(), `"version":1,`) && strings.Contains(kept(), `"red"`) }, patience, 10*time.Millisecond)

	began := time.Now()
	require.Equal(t, device.Done, w.tell(t, id, "takedown-1", device.Instruction{Kind: device.Takedown, CreativeID: "long"}).State)
	t.Logf("a takedown was done %s after it was asked for", time.Since(began))
	p.waitFor(t, "played red")
	require.Less(t, time.Since(began), 2*time.Second)
	require.Equal(t, -1, p.signal(t, syscall.SIGKILL))
	stop()

	p = start(t, "--dir", dir)
	p.waitFor(t, "played red")
	require.NotContains(t, p.output(), "shows long")
	// One that is sent while it is away is there when it is back, once.
	sent, err := w.SendCommand(t.Context(), "acc_1", "identify-2", organisation, id, device.Instruction{Kind: device.Identify})
	require.NoError(t, err)
	require.Zero(t, p.signal(t, os.Interrupt))
	w.serve(t)
	p = start(t, "--dir", dir)
	require.Equal(t, device.Done, w.answered(t, sent).State)
	p.waitFor(t, "identifies itself for 10s")
	w.put(t, id, w.item("long", time.Second, false))
	p.waitFor(t, "shows long")
	require.Zero(t, p.signal(t, os.Interrupt))
	require.Equal(t, 1, strings.Count(p.output(), "identifies itself"))
}

// TestFleetCommand takes a creative down on each of 50 displays of one process.
func TestFleetCommand(t *testing.T) {
	const devices = 50
	w := newWorld(t)
	w.serve(t)
	dir := t.TempDir()
	var lines strings.Builder
	var ids []string
	for n := range devices {
		id, code := w.create(t, fmt.Sprint(n))
		c, err := w.Claim(t.Context(), code, "")
		require.NoError(t, err)
		fmt.Fprintf(&lines, "%s %s\n", c.DeviceID, c.Secret)
		w.put(t, id, w.item("same", 5*time.Second, false))
		ids = append(ids, id)
	}
	group, err := w.CreateGroup(t.Context(), "acc_1", "a-group-1", organisation, "all")
	require.NoError(t, err)
	_, err = w.AddGroupDevices(t.Context(), organisation, group.ID, ids)
	require.NoError(t, err)
	file := filepath.Join(dir, "devices.txt")
	require.NoError(t, os.WriteFile(file, []byte(lines.String()), 0o600))
	p := start(t, "--dir", filepath.Join(dir, "state"), "--server", w.address, "--credentials", file)
	require.Eventually(t, func() bool { return w.online(t) == devices }, patience, 20*time.Millisecond, "not all connect")
	sent, err := w.SendGroupCommand(t.Context(), "acc_1", "takedown-1", organisation, group.ID, device.Instruction{Kind: device.Takedown, CreativeID: "same"})
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		now, err := w.FindGroupCommand(t.Context(), organisation, group.ID, sent.ID)
		return err == nil && now.States[device.Done] == devices
	}, patience, 10*time.Millisecond, "not all take it down")
	require.Zero(t, p.signal(t, os.Interrupt))
	for _, id := range ids {
		kept, err := os.ReadFile(filepath.Join(dir, "state", id, "takedowns.json"))
		require.NoError(t, err)
		require.JSONEq(t, `{"same":1}`, string(kept))
	}
}
