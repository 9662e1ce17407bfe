package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/service"
)

// check runs deviced --check-plays and returns what it prints.
func (w *world) check(t *testing.T) (string, error) {
	t.Helper()
	cfg, err := service.Parse[config]("device", append([]string{"--check-plays", "--mesh=plaintext", "--environment=test", "--mode=test", "--nats-address=" + w.nats}, w.database...), io.Discard)
	require.NoError(t, err)
	cfg.Upstreams = map[string][]string{"account": {w.account.Address()}}
	log, err := os.Create(t.TempDir() + "/log")
	require.NoError(t, err)
	defer log.Close()
	cfg.LogOutput = log
	var out bytes.Buffer
	cfg.Output = &out
	err = run(within(t), cfg)
	return out.String(), err
}

func TestCheckPlays(t *testing.T) {
	w := newWorld(t)
	i := w.start(t)
	device := i.enrol(t, "request-1")
	id := device.GetDeviceId()
	put(t, i, id, "a")
	p, err := dial5(t, i.players, id, device.GetSecret())
	require.NoError(t, err)
	now := time.Now()
	long, lately := now.Add(-29*24*time.Hour), now.Add(-time.Hour)
	require.NoError(t, p.publish("d/"+id+"/up/plays", batch("x", play(now, "a", 10000), play(lately, "a", 10000), play(long, "a", 10000))))
	text, err := w.check(t)
	require.NoError(t, err)
	require.Equal(t, "all hours agree with their plays\n", text)

	conn, err := pgx.Connect(t.Context(), w.url)
	require.NoError(t, err)
	defer conn.Close(t.Context())
	hour := func(at time.Time) time.Time { return at.UTC().Truncate(time.Hour) }
	_, err = conn.Exec(t.Context(), "UPDATE plays_hourly SET plays = plays + 1 WHERE hour_time = $1", hour(long))
	require.NoError(t, err)
	_, err = conn.Exec(t.Context(), "DELETE FROM plays_hourly WHERE hour_time = $1", hour(lately))
	require.NoError(t, err)
	text, err = w.check(t)
	require.ErrorIs(t, err, errDisagree)
	require.Equal(t, fmt.Sprintf("%s device %s creative a: 2 summed, 1 stored\n%s device %s creative a: 0 summed, 1 stored\n",
		hour(long).Format(time.RFC3339), id, hour(lately).Format(time.RFC3339), id), text)

	t.Run("Help", func(t *testing.T) {
		var help bytes.Buffer
		_, err := service.Parse[config]("device", []string{"--help"}, &help)
		require.ErrorIs(t, err, service.ErrAnswered)
		require.Contains(t, help.String(), "--check-plays")
	})
}

// TestCheckPlaysProgram runs the program as an operator does: beside an instance,
// once when the sums are right and once when one is not.
func TestCheckPlaysProgram(t *testing.T) {
	program, err := os.Executable()
	require.NoError(t, err)
	w := newWorld(t)
	check := func() (printed, logged string, code int) {
		t.Helper()
		args := append([]string{"--check-plays", "--mesh=plaintext", "--environment=test", "--mode=test", "--nats-address=" + w.nats}, w.database...)
		command := exec.CommandContext(within(t), program, args...)
		command.Env = []string{asProgram + "="}
		var out, errs bytes.Buffer
		command.Stdout, command.Stderr = &out, &errs
		err := command.Run()
		var failed *exec.ExitError
		require.True(t, err == nil || errors.As(err, &failed), "%v", err)
		return out.String(), errs.String(), command.ProcessState.ExitCode()
	}
	i := w.start(t)
	device := i.enrol(t, "request-1")
	id := device.GetDeviceId()
	put(t, i, id, "a")
	p, err := dial3(t, i.players, id, device.GetSecret())
	require.NoError(t, err)
	now := time.Now()
	require.NoError(t, p.publish("d/"+id+"/up/plays", batch("x", play(now, "a", 10000), play(now.Add(-48*time.Hour), "a", 10000))))
	printed, logged, code := check()
	require.Zero(t, code, "%s", logged)
	require.Contains(t, printed, "all hours agree with their plays\n")

	conn, err := pgx.Connect(t.Context(), w.url)
	require.NoError(t, err)
	defer conn.Close(t.Context())
	done, err := conn.Exec(t.Context(), "UPDATE plays_hourly SET plays = plays - 1 WHERE hour_time = $1", now.Add(-48*time.Hour).UTC().Truncate(time.Hour))
	require.NoError(t, err)
	require.EqualValues(t, 1, done.RowsAffected())
	printed, logged, code = check()
	require.Equal(t, 1, code)
	require.Contains(t, printed, "device "+id+" creative a: 0 summed, 1 stored\n")
	require.NotContains(t, printed, "agree with")
	require.Contains(t, printed+logged, "1 hours disagree")
}

// metric is the value of one line of an instance's metrics.
func (i *instance) metric(t *testing.T, name string) float64 {
	t.Helper()
	req, err := http.NewRequestWithContext(within(t), http.MethodGet, "http://"+i.admin+"/metrics", http.NoBody)
	require.NoError(t, err)
	answer, err := http.DefaultClient.Do(req)
	require.NoError(t, err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	require.NoError(t, err)
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			require.NoError(t, err)
			return n
		}
	}
	t.Fatalf("no metric %s in\n%s", name, text)
	return 0
}

func dialTCP(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	return conn
}

func TestMetrics(t *testing.T) {
	i := newWorld(t).start(t, "--mqtt-connections=2", "--mqtt-connecting=2", "--mqtt-connect-within=1s")
	device := i.enrol(t, "request-1")
	id := device.GetDeviceId()
	put(t, i, id, "a")
	p, err := dial5(t, i.players, id, device.GetSecret())
	require.NoError(t, err)
	require.InDelta(t, 1, i.metric(t, "device_players_connected"), 0)
	again := play(time.Now(), "a", 10000)
	require.NoError(t, p.publish("d/"+id+"/up/plays", batch("x", again, play(time.Now(), "a", 10000), play(time.Now(), "b", 10000))))
	require.NoError(t, p.publish("d/"+id+"/up/plays", batch("x", again)))
	require.NoError(t, p.publish("d/"+id+"/up/plays", []byte("{")))
	for name, want := range map[string]float64{
		`device_plays_total{outcome="stored"}`: 2, `device_plays_total{outcome="duplicate"}`: 1,
		`device_plays_rejected_total{reason="UNKNOWN_CREATIVE"}`: 1, `device_plays_rejected_total{reason="MALFORMED"}`: 1,
		`device_plays_rejected_total{reason="TOO_OLD"}`: 0, "device_batches_waiting": 0,
	} {
		require.InDelta(t, want, i.metric(t, name), 0, name)
	}

	refused := func(reason string) {
		t.Helper()
		require.Eventually(t, func() bool { return i.metric(t, `device_connects_refused_total{reason="`+reason+`"}`) == 1 },
			patience, 20*time.Millisecond, "not refused for %s", reason)
	}
	_, err = dial5(t, i.players, id, strings.Repeat("x", len(device.GetSecret())))
	require.Error(t, err)
	refused("credentials")
	silent := dialTCP(t, i.players)
	require.Eventually(t, func() bool {
		// Once it has been taken, there is no room.
		dialTCP(t, i.players)
		return i.metric(t, `device_connects_refused_total{reason="too_many_connections"}`) > 0
	}, patience, 20*time.Millisecond)
	_, err = silent.Read(make([]byte, 1))
	require.Error(t, err, "it said nothing in time")
	require.Eventually(t, func() bool { return i.metric(t, `device_connects_refused_total{reason="no_connect"}`) > 0 }, patience, 20*time.Millisecond)
}
