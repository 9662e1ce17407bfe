package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRun(t *testing.T) {
	t.Run("OKRefusedCallersWait", func(t *testing.T) {
		const told = 50 * time.Millisecond
		var calls atomic.Int64
		r := &row{callers: 2, call: func(context.Context) error {
			if calls.Add(1) <= 2 {
				return nil
			}
			return refusedError{after: told}
		}}
		const d = 300 * time.Millisecond
		s, err := r.run(t.Context(), d)
		require.NoError(t, err)
		require.Positive(t, s.rate)
		require.Positive(t, s.refused)
		require.LessOrEqual(t, calls.Load(), 2+2*int64(d/told+1), "refused callers came back at once")
		require.Len(t, s.cpu, 1, "that of the caller")
	})
	t.Run("OtherFailuresEndIt", func(t *testing.T) {
		broken := errors.New("broken")
		_, err := (&row{callers: 3, call: func(context.Context) error { return broken }}).run(t.Context(), time.Minute)
		require.ErrorIs(t, err, broken)
	})
	t.Run("NothingAccepted", func(t *testing.T) {
		_, err := (&row{callers: 1, call: func(context.Context) error { return refusedError{after: time.Second} }}).run(t.Context(), 20*time.Millisecond)
		require.ErrorContains(t, err, "no call came back")
	})
}

func TestCPUOf(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	require.NoError(t, os.WriteFile(log, []byte("last words"), 0o600))
	cmd := exec.Command("sh", "-c", "while :; do :; done & wait")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	require.NoError(t, cmd.Start())
	busy := []*process{{name: "busy", pid: cmd.Process.Pid, log: log}}
	require.Eventually(t, func() bool {
		used, err := cpuOf(busy)
		return err == nil && used[0] >= 50*time.Millisecond
	}, 30*time.Second, 10*time.Millisecond, "the processor time of the child is not counted")

	require.NoError(t, syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL))
	require.Error(t, cmd.Wait(), "it was killed")
	_, err := cpuOf(busy)
	require.ErrorContains(t, err, "busy has ended")
	require.ErrorContains(t, err, "last words")
}

func TestParseStat(t *testing.T) {
	pid, parent, used, err := parseStat("42 (a (b) c) S 7 42 42 0 -1 4194560 1 2 3 4 10 20 30 40 20 0 1 0")
	require.NoError(t, err)
	require.Equal(t, []any{42, 7, time.Second}, []any{pid, parent, used})
	for _, text := range []string{"", "42 sh S 7", "42 (sh) S 7 42", "42 (sh) S 7 42 42 0 -1 0 1 2 3 4 ten 20 30 40"} {
		_, _, _, err := parseStat(text)
		require.Error(t, err, "%q", text)
	}
}

func TestReport(t *testing.T) {
	of := func(milliseconds ...int) (samples []sample) {
		for _, ms := range milliseconds {
			d := time.Duration(ms) * time.Millisecond
			samples = append(samples, sample{rate: 1000 / float64(ms), refused: 2, p50: d, p99: 2 * d, cpu: []float64{d.Seconds(), d.Seconds() / 4}})
		}
		return samples
	}
	proxy, server := []*process{{name: "proxy"}}, []*process{{name: "server"}}

	t.Run("OKEcho", func(t *testing.T) {
		s := &series{rounds: 3, each: time.Second, rows: []*row{
			{name: "plain", what: "nothing", processes: server, samples: of(1, 2, 4)},
			{name: "proxied", what: "all", against: []string{"plain", "left out by -only"}, processes: proxy, samples: of(4, 4, 4)},
		}}
		text := s.report()
		require.Contains(t, text, "| plain | 500 | 2ms | 4ms | 2.5ms | server 2ms, client 500µs |\n")
		require.Contains(t, text, "| proxied | plain | 0.50 (0.25 to 1.00) | 2.00 (1.00 to 4.00) | 2.00 (1.00 to 4.00) |\n")
		require.NotContains(t, text, "left out")
	})
	t.Run("OKAccounts", func(t *testing.T) {
		s := &series{rounds: 2, each: time.Second, rows: []*row{
			{method: "read", by: "one handler", callers: 16, processes: server, samples: of(1, 2)},
			{method: "read", by: "platform", callers: 16, processes: proxy, samples: of(4, 4)},
		}}
		text := s.accountReport()
		require.Contains(t, text, "| read | 16 | one handler | 750 | 2 | 1.5ms | 3ms | 1.88ms | server 1.5ms, client 375µs |\n")
		require.Contains(t, text, "| read | 16 | 0.38 (0.25 to 0.50) | 3.00 (2.00 to 4.00) | 3.00 (2.00 to 4.00) | 3.00 (2.00 to 4.00) |\n")
	})
}

func TestShort(t *testing.T) {
	for nanoseconds, want := range map[float64]string{0: "0s", 82_100: "82.1µs", 1_234_567: "1.23ms", 999_999: "1ms", 26_249_000: "26.2ms", 1_500_000_000: "1.5s"} {
		require.Equal(t, want, short(nanoseconds), fmt.Sprint(nanoseconds))
	}
}

// Each row of the one handler is followed by the platform's, whatever -only leaves.
func TestAccountRowsComeInPairs(t *testing.T) {
	for only, want := range map[string]int{"": 24, "account": 24, "account read": 8, "log-in, 64": 2, "plaintext": 0, "platform": 0} {
		rows := (&bench{only: only}).accountRows(&door{name: "one handler"}, &door{name: "platform"})
		require.Len(t, rows, want, only)
		for i := 0; i < len(rows); i += 2 {
			one, platform := rows[i], rows[i+1]
			require.Equal(t, []string{"one handler", "platform", one.name}, []string{one.by, platform.by, platform.name})
			require.Equal(t, one.callers, platform.callers)
		}
	}
}
