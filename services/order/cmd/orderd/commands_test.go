package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/service"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
)

// command runs orderd with a command, and returns what it prints.
func (w *world) command(t *testing.T, flags ...string) (string, error) {
	t.Helper()
	cfg, err := service.Parse[config]("order", w.flags(append([]string{"--check-within=1s"}, flags...)...), io.Discard)
	require.NoError(t, err)
	cfg.Upstreams = w.upstreams()
	log, err := os.Create(t.TempDir() + "/log")
	require.NoError(t, err)
	defer log.Close()
	cfg.LogOutput = log
	var out bytes.Buffer
	cfg.Output = &out
	err = run(within(t), cfg)
	return out.String(), err
}

func TestPlaylists(t *testing.T) {
	w := newWorld(t)
	i := w.start(t)
	displays := i.displays(t, 3)
	first, second := i.book(t, "request-1", displays...), i.book(t, "request-2", displays[0])
	over := i.book(t, "request-3", displays[1])
	w.past(t, over.GetOrderId(), 10*aDay)
	cancelled := i.book(t, "request-4", displays[2])
	_, err := i.CancelOrder(i.buyer(t), &orderv1.CancelOrderRequest{OrganisationId: buyer, OrderId: cancelled.GetOrderId(), RequestId: "cancel-4"})
	require.NoError(t, err)

	text, err := w.command(t, "--check-playlists")
	require.ErrorIs(t, err, errPlaylists)
	require.Equal(t, 4, strings.Count(text, "it is sold, and the device does not know it\n"), text)
	require.Equal(t, 4, strings.Count(text, "\n"), text)
	text, err = w.command(t, "--rebuild-playlists")
	require.NoError(t, err)
	require.Equal(t, "3 displays: 4 lines were different, of 0 lines displays were not told\n", text)
	text, err = w.command(t, "--check-playlists")
	require.NoError(t, err)
	require.Equal(t, "devices know all 4 lines that are sold, and no others\n", text)
	text, err = w.command(t, "--rebuild-playlists")
	require.NoError(t, err)
	require.Equal(t, "3 displays: 0 lines were different, of 0 lines displays were not told\n", text)

	known := func(l *orderv1.Line) *orderv1.BookedLine { return w.device.lines[l.GetLineId()] }
	spoil := func(change func()) {
		w.device.mu.Lock()
		defer w.device.mu.Unlock()
		change()
	}
	for name, c := range map[string]struct {
		change func()
		why    string
	}{
		"Slots":   {func() { known(first.GetLines()[1]).Slots = []int32{5} }, "the slots [0] are sold, and the device knows [5]"},
		"Times":   {func() { known(first.GetLines()[1]).Flight.EndDate = "2099-12-31" }, "the device knows other times than were sold"},
		"Showing": {func() { known(first.GetLines()[1]).Showing = &orderv1.Showing{ShowingId: "x"} }, "it shows nothing, and the device knows x"},
		"Missing": {func() { delete(w.device.lines, second.GetLines()[0].GetLineId()) }, "it is sold, and the device does not know it"},
		"Surplus": {func() {
			left := known(first.GetLines()[2])
			w.device.lines["lin_0"] = &orderv1.BookedLine{LineId: "lin_0", DeviceId: left.GetDeviceId(), Flight: left.GetFlight(), Slots: left.GetSlots(), StartTime: left.GetStartTime(), EndTime: left.GetEndTime()}
		}, "the device knows it, and it is not sold"},
		"Revision": {func() { known(first.GetLines()[0]).Revision-- }, "it is sold in revision 1, and the device knows revision 0"},
	} {
		t.Run(name, func(t *testing.T) {
			spoil(c.change)
			text, err := w.command(t, "--check-playlists")
			require.ErrorIs(t, err, errPlaylists)
			require.Equal(t, 1, strings.Count(text, "\n"), text)
			require.Contains(t, text, c.why)
			text, err = w.command(t, "--rebuild-playlists")
			require.NoError(t, err)
			require.Contains(t, text, "3 displays: 1 lines were different")
			_, err = w.command(t, "--check-playlists")
			require.NoError(t, err)
		})
	}

	t.Run("OnItsWay", func(t *testing.T) {
		// The event comes while the command looks.
		l := known(first.GetLines()[0])
		spoil(func() { delete(w.device.lines, l.GetLineId()) })
		arrived := time.AfterFunc(2*time.Second, func() { spoil(func() { w.device.lines[l.GetLineId()] = l }) })
		defer arrived.Stop()
		_, err := w.command(t, "--check-playlists", "--check-within=15s")
		require.NoError(t, err)
	})

	t.Run("ErrUnavailable", func(t *testing.T) {
		w.device.fail(errDeviceAway)
		defer w.device.fail(nil)
		for _, flag := range []string{"--check-playlists", "--rebuild-playlists"} {
			_, err := w.command(t, flag)
			require.ErrorContains(t, err, "PLAYLISTS_UNAVAILABLE", flag)
		}
	})

	t.Run("Gone", func(t *testing.T) {
		spoil(func() { w.device.devices = w.device.devices[1:] })
		text, err := w.command(t, "--rebuild-playlists")
		require.NoError(t, err)
		require.Contains(t, text, "device "+displays[0]+" is gone: what is sold on it is not played\n")
	})
}

func TestCheckLedger(t *testing.T) {
	w := newWorld(t)
	i := w.start(t)
	o := i.book(t, "request-1", i.displays(t, 2)...)
	text, err := w.command(t, "--check-ledger")
	require.NoError(t, err)
	require.Equal(t, "2 entries and 1 orders that were booked fit together\n", text)
	w.exec(t, "UPDATE ledger_accounts SET balance_minor = balance_minor + 1 WHERE account_id = $1", "order:"+o.GetOrderId())
	text, err = w.command(t, "--check-ledger")
	require.ErrorIs(t, err, errLedger)
	require.Contains(t, text, o.GetOrderId())
}

// TestCheckLedgerProgram runs the program as an operator does, once when all is right
// and once when it is not.
func TestCheckLedgerProgram(t *testing.T) {
	program, err := os.Executable()
	require.NoError(t, err)
	w := newWorld(t)
	check := func() (printed, logged string, code int) {
		t.Helper()
		command := exec.CommandContext(within(t), program, w.flags("--check-ledger")...)
		command.Env = []string{asProgram + "="}
		var out, errs bytes.Buffer
		command.Stdout, command.Stderr = &out, &errs
		err := command.Run()
		var failed *exec.ExitError
		require.True(t, err == nil || errors.As(err, &failed), "%v", err)
		return out.String(), errs.String(), command.ProcessState.ExitCode()
	}
	i := w.start(t)
	o := i.book(t, "request-1", i.displays(t, 1)...)
	printed, logged, code := check()
	require.Zero(t, code, "%s", logged)
	require.Contains(t, printed, "fit together\n")
	w.exec(t, "DELETE FROM reservations WHERE line_id = $1", o.GetLines()[0].GetLineId())
	printed, logged, code = check()
	require.Equal(t, 1, code, "%s", logged)
	require.Contains(t, printed, o.GetLines()[0].GetLineId())
	require.Contains(t, logged, errLedger.Error())
}

func TestFlags(t *testing.T) {
	for name, c := range map[string]struct {
		flags []string
		why   string
	}{
		"Share":    {[]string{"--platform-share-percent=101"}, "--platform-share-percent: 101 is no share"},
		"Settle":   {[]string{"--settle-after=-1s"}, "--settle-after"},
		"Sweep":    {[]string{"--sweep-every=0s"}, "--sweep-every"},
		"Sync":     {[]string{"--sync-every=1ms"}, "--sync-every"},
		"Commands": {[]string{"--check-ledger", "--check-playlists"}, "one at a time"},
		"NATS":     {[]string{"--nats-replicas=2"}, "--nats-replicas"},
	} {
		t.Run(name, func(t *testing.T) {
			w := &world{nats: "127.0.0.1:1"}
			_, err := service.Parse[config]("order", w.flags(append(c.flags, "--database-host=/tmp", "--database-name=x", "--database-user=x")...), io.Discard)
			require.ErrorContains(t, err, c.why)
		})
	}
	var help bytes.Buffer
	_, err := service.Parse[config]("order", []string{"--help"}, &help)
	require.ErrorIs(t, err, service.ErrAnswered)
	for _, flag := range []string{"--check-ledger", "--check-playlists", "--rebuild-playlists", "--settle-after", "--platform-share-percent"} {
		require.Contains(t, help.String(), flag)
	}
}
