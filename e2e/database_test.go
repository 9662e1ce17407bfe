package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/e2e/scenario"
)

const (
	// databaseAway is how long Postgres is taken away.
	databaseAway = 10 * time.Second
	// answerWithin is how long a call may take to be told that the database is
	// away: twice what the service waits for it at the longest, and less than the
	// calls' own deadline.
	answerWithin = 10 * time.Second
)

// The database goes away and comes back, and callers are told the truth.
func TestDatabase(t *testing.T) {
	t.Run("Stopped", func(t *testing.T) {
		databaseTrouble(t, true, func(ctx context.Context) {
			require.NoError(t, the.Jobs().Stop(ctx, "account-db", false))
			pause(t, ctx, databaseAway)
			_, err := the.Deploy(ctx, "account-db", nil)
			require.NoError(t, err)
		})
	})
	// It takes connections and answers nothing, as on a machine that thrashes.
	t.Run("Frozen", func(t *testing.T) {
		databaseTrouble(t, true, func(ctx context.Context) {
			frozen := postgresProcesses(t, accountDB)
			t.Cleanup(func() { signalAll(t, frozen, syscall.SIGCONT) })
			signalAll(t, frozen, syscall.SIGSTOP)
			pause(t, ctx, databaseAway)
			signalAll(t, frozen, syscall.SIGCONT)
		})
	})
	t.Run("KilledAmidCommits", func(t *testing.T) {
		// Nomad may have it back before the instances miss it twice in a row.
		databaseTrouble(t, false, func(ctx context.Context) {
			const times = 3
			for i := range times {
				killed := postgresProcesses(t, accountDB)
				signalAll(t, killed, syscall.SIGKILL)
				scenario.Eventually(ctx, t, 30*time.Second, "another Postgres runs", func() error {
					if pid := postmaster(t, accountDB); pid == 0 || pid == killed[0] {
						return errNotYet
					}
					return nil
				})
				if i < times-1 {
					healthy(t, ctx, "account", 3, time.Minute)
				}
			}
		})
	})
}

// databaseTrouble makes trouble under load and requires of it what every trouble
// with the database must come down to. long is trouble that makes the instances
// unready.
func databaseTrouble(t *testing.T, long bool, trouble func(context.Context)) {
	ctx := begin(t, 3*time.Minute)
	accounts := openDoorsOnce(t, ctx)
	reads := accounts.Reads(ctx, t)
	started := time.Now()
	running := load.Start(ctx, load.Plan{Rate: 60, Timeout: 12 * time.Second, Ops: slices.Concat(accounts.SignUps(), reads, reads, reads, reads, reads)})
	scenario.AtLeast(ctx, t, running, 180)
	calls, _ := running.Snapshot()

	unready := make(chan time.Duration, 1)
	var watching sync.WaitGroup
	began := time.Now()
	watching.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for time.Since(began) < databaseAway && ctx.Err() == nil {
			if ids, err := instances(ctx, "account"); err == nil && len(ids) == 0 {
				unready <- time.Since(began)
				return
			}
			<-tick.C
		}
	})
	trouble(ctx)
	over := time.Now()
	watching.Wait()
	healthy(t, ctx, "account", 3, time.Minute)
	// Through both doors, as before.
	scenario.Eventually(ctx, t, 20*time.Second, "calls go well again", func() error {
		for _, read := range reads {
			if _, err := read.Call(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	recovered := time.Since(over)
	fine := time.Since(started)
	scenario.More(ctx, t, running, 120)
	report := running.Stop()

	select {
	case after := <-unready:
		t.Logf("no instance was ready %.1f s after", after.Seconds())
	default:
		require.False(t, long, "the instances stayed ready for %s without their database", databaseAway)
		t.Log("it was back before all instances were unready")
	}
	t.Logf("served again %.1f s after the trouble was over; %d calls before it", recovered.Seconds(), calls)
	t.Log(summary(report))
	require.NotEmpty(t, report.Failed, "calls went on without a database")
	for _, f := range report.Failed {
		require.Less(t, f.Took, answerWithin, "%s at %s: %v", f.Op, f.At, f.Err)
		// A sign-up may also find too many before it, which waited for the database,
		// and those that are sent again afterwards.
		if strings.HasSuffix(f.Op, "SignUp") && tooMuch(f.Err) == nil {
			continue
		}
		require.NoError(t, toldToTryAgain(f.Err), "%s at %s", f.Op, f.At)
		require.Less(t, f.At, fine, "%s fails after all was well again: %v", f.Op, f.Err)
	}
	accounts.Check(ctx, t)
}

// toldToTryAgain returns nil for an answer that says that the service is not
// available and when to try again.
func toldToTryAgain(err error) error {
	return toldWhen(err, http.StatusServiceUnavailable, codes.Unavailable)
}

// toldWhen returns nil for an answer of that status or code which says when to
// try again.
func toldWhen(err error, httpStatus int, code codes.Code) error {
	if p := (*load.ProblemError)(nil); errors.As(err, &p) {
		seconds, bad := strconv.Atoi(p.RetryAfter)
		if p.HTTPStatus != httpStatus || bad != nil || seconds < 1 || seconds > 30 {
			return fmt.Errorf("want %d with Retry-After, got %q: %w", httpStatus, p.RetryAfter, err)
		}
		return nil
	}
	st, ok := status.FromError(err)
	if !ok || st.Code() != code {
		return fmt.Errorf("want %s: %w", code, err)
	}
	for _, detail := range st.Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok && info.GetRetryDelay().AsDuration() > 0 {
			return nil
		}
	}
	return fmt.Errorf("without RetryInfo: %w", err)
}

// summary is a report with its failures by kind instead of one by one.
func summary(r *load.Report) string {
	kinds := map[string]int{}
	longest := time.Duration(0)
	for _, f := range r.Failed {
		kinds[fmt.Sprintf("%s: %.120v", f.Op, f.Err)]++
		longest = max(longest, f.Took)
	}
	text := fmt.Sprintf("%d calls in %.1f s, %d failed, within %s at the longest", r.Calls, r.Took.Seconds(), len(r.Failed), longest.Round(time.Millisecond))
	for kind, n := range kinds {
		text += fmt.Sprintf("\n  %5d %s", n, kind)
	}
	return text
}

// openDoorsOnce makes load that hears what each call was told: clients that
// repeat their calls by themselves would hide it.
func openDoorsOnce(t *testing.T, ctx context.Context) *scenario.Accounts {
	t.Helper()
	found, _ := bothGateways(t, ctx)
	bases, addresses := scenario.Addresses(found)
	rest := load.NewREST(bases...)
	t.Cleanup(rest.Close)
	conn, err := load.DialGRPCOnce(addresses...)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	accounts := scenario.NewAccounts(rest, conn)
	accounts.Once = true
	return accounts
}

const accountDB = "account-db"

// postmaster is the process id of a database's Postgres; 0 while there is none.
func postmaster(t *testing.T, database string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(the.Cluster().Volumes(), database, "data", "postmaster.pid"))
	if errors.Is(err, os.ErrNotExist) {
		return 0
	}
	require.NoError(t, err)
	first, _, _ := strings.Cut(string(text), "\n")
	pid, _ := strconv.Atoi(strings.TrimSpace(first)) // half written: not there yet
	return pid
}

// postgresProcesses are those of a database's Postgres, the postmaster first.
func postgresProcesses(t *testing.T, database string) []int {
	t.Helper()
	found := []int{postmaster(t, database)}
	require.NotZero(t, found[0], "Postgres does not run")
	all, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(t, err)
	for _, path := range all {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(found[0]) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			require.NoError(t, err)
			found = append(found, pid)
		}
	}
	return found
}

func signalAll(t *testing.T, pids []int, signal syscall.Signal) {
	t.Helper()
	for _, pid := range pids {
		if err := syscall.Kill(pid, signal); err != nil {
			require.ErrorIs(t, err, syscall.ESRCH, "signalling %d", pid)
		}
	}
}

// pause is for how long a fault lasts, which is no condition to wait for.
func pause(t *testing.T, ctx context.Context, d time.Duration) {
	t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		require.NoError(t, ctx.Err())
	}
}
