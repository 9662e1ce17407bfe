package e2e

import (
	"context"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/scenario"
	orderv1 "github.com/marquee-ads/marquee/proto/gen/marquee/order/v1"
)

const (
	// faultsVariable says for how long TestFaults breaks things, for example 5m, and
	// seedVariable which ones: the same seed breaks the same things at the same times.
	faultsVariable = "MARQUEE_E2E_FAULTS"
	faultsDefault  = time.Minute
	// The plan of seedDefault has every target in its first minute.
	seedVariable = "MARQUEE_E2E_SEED"
	seedDefault  = 1795328880046456843

	// shortestGap and longestGap are between one fault and the next, whether or not
	// that one is over, and longestFreeze is how long what is not killed is stopped.
	shortestGap   = time.Second
	longestGap    = 7 * time.Second
	longestFreeze = 8 * time.Second
	// faultBuyers buy meanwhile, each every faultPace or slower.
	faultBuyers = 12
	faultPace   = 200 * time.Millisecond
	// editEvery is how often a creative is edited, and approved.
	editEvery   = 300 * time.Millisecond
	editTimeout = 10 * time.Second
	// showEvery is how often the displays get another playlist.
	showEvery = 15 * time.Second
)

// fault is something that dies, or stops for a while.
type fault struct {
	at     time.Duration // since the first could happen
	target string        // a program, or the database of a service
	nth    int           // of its instances, however many there are
	frozen time.Duration // 0 for what is killed
}

// databases are the targets that are Postgres.
var databases = []string{"device-db", "order-db"}

// planFaults makes up what happens until the end, each time the same of a seed.
// Nothing happens to what is still frozen.
func planFaults(seed uint64, end time.Duration) (plan []fault) {
	random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // no secret
	targets := append([]string{"orderd", "deviced", "gatewayd", "natsd", "player"}, databases...)
	free := map[string]time.Duration{}
	for at := time.Duration(0); at < end; at += shortestGap + time.Duration(random.Int64N(int64(longestGap-shortestGap))) {
		f := fault{at: at, target: targets[random.IntN(len(targets))], nth: random.IntN(100)}
		if random.IntN(2) == 0 && f.target != "player" {
			f.frozen = time.Second + time.Duration(random.Int64N(int64(longestFreeze-time.Second)))
		}
		if at < free[f.target] {
			continue
		}
		free[f.target] = at + f.frozen + time.Second
		plan = append(plan, f)
	}
	return plan
}

// pids are the processes that a fault hits; none when there are none just then.
func (f fault) pids(t *testing.T) []int {
	t.Helper()
	if slices.Contains(databases, f.target) {
		if postmaster(t, f.target) == 0 {
			return nil
		}
		return postgresProcesses(t, f.target)
	}
	running := processes(t, f.target)
	if len(running) == 0 {
		return nil
	}
	allocations := slices.Sorted(maps.Keys(running))
	return []int{running[allocations[f.nth%len(allocations)]]}
}

// breakThings does what is planned, and returns what it did, as a table.
func breakThings(t *testing.T, ctx context.Context, plan []fault, fleet *scenario.Fleet) *scenario.Table {
	t.Helper()
	table := &scenario.Table{Columns: []string{"After", "What", "How"}}
	var mu sync.Mutex
	var thawing sync.WaitGroup
	began, frozen := time.Now(), map[string][]int{}
	thaw := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		for _, pid := range frozen[what] {
			_ = syscall.Kill(pid, syscall.SIGCONT) // gone: killed by who watches over it
		}
		delete(frozen, what)
	}
	defer func() {
		for _, f := range plan {
			thaw(f.target)
		}
		thawing.Wait()
	}()
	for _, f := range plan {
		pause(t, ctx, time.Until(began.Add(f.at)))
		after := fmt.Sprintf("%.1f s", time.Since(began).Seconds())
		if f.target == "player" {
			fleet.Kill(t)
			table.Add(after, f.target, "killed")
			continue
		}
		pids := f.pids(t)
		switch {
		case len(pids) == 0:
			table.Add(after, f.target, "was not there")
		case f.frozen == 0:
			signalAll(t, pids, syscall.SIGKILL)
			table.Add(after, f.target, "killed")
		default:
			mu.Lock()
			frozen[f.target] = pids
			mu.Unlock()
			signalAll(t, pids, syscall.SIGSTOP)
			thawing.Go(func() {
				select {
				case <-time.After(f.frozen):
				case <-ctx.Done():
				}
				thaw(f.target)
			})
			table.Add(after, f.target, fmt.Sprintf("frozen for %.1f s", f.frozen.Seconds()))
		}
	}
	return table
}

// writer edits what buyers show, and has the owner of the displays approve it.
type writer struct {
	market                           *scenario.Market
	edits, approved, unasked, failed int
}

// begin makes a creative for each buyer, which is approved once a display shows it.
func (w *writer) begin(t *testing.T, ctx context.Context) {
	t.Helper()
	for _, buyer := range w.market.Buyers {
		var made orderv1.CreateCreativeResponse
		require.NoError(t, buyer.Ask(ctx, scenario.GRPC, &orderv1.CreateCreativeRequest{RequestId: "the-creative", Title: "Sale", Content: text("Sale")}, &made))
		w.market.Creatives[buyer.Organisation] = made.GetCreative().GetCreativeId()
	}
}

// every calls do, and counts, until stop is closed.
func every(ctx context.Context, stop <-chan struct{}, pause time.Duration, do func(n int)) {
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-stop:
			return
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		do(n)
	}
}

// edit has a buyer write something else, and the owner of the displays approve it. What
// fails is tried again when its turn comes.
func (w *writer) edit(ctx context.Context, buyer *scenario.Owner, n int) error {
	ctx, cancel := context.WithTimeout(ctx, editTimeout)
	defer cancel()
	creative, door := w.market.Creatives[buyer.Organisation], scenario.Door(n%2)
	var edited orderv1.UpdateCreativeResponse
	err := buyer.Ask(ctx, door, &orderv1.UpdateCreativeRequest{CreativeId: creative, Title: "Sale", Content: text(fmt.Sprintf("Sale %d", n))}, &edited)
	if err != nil {
		return err
	}
	w.edits++
	err = w.market.Seller.Ask(ctx, door, &orderv1.DecideApprovalRequest{
		CreativeId: creative, Version: edited.GetCreative().GetVersions()[0].GetVersion(), Approve: true,
	}, nil)
	switch {
	case err == nil:
		w.approved++
	case scenario.Reason(err) == "APPROVAL_NOT_FOUND": // it is not booked anywhere
		w.unasked++
		return nil
	}
	return err
}

// Whatever dies, and whatever stops for a while, at random and several at a time:
// every play is counted once, no slot is sold twice, what was acknowledged is there,
// the money adds up, and displays have what was booked.
func TestFaults(t *testing.T) {
	lasting := faultsDefault
	if text := os.Getenv(faultsVariable); text != "" {
		var err error
		lasting, err = time.ParseDuration(text)
		require.NoError(t, err, faultsVariable)
	}
	seed := uint64(seedDefault)
	if text := os.Getenv(seedVariable); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		require.NoError(t, err, seedVariable)
	}
	plan := planFaults(seed, lasting)
	require.Equal(t, plan, planFaults(seed, lasting), "a seed is one plan")
	t.Logf("%d faults in %s, of seed %d", len(plan), lasting, seed)

	ctx := begin(t, lasting+6*time.Minute)
	fleet, o := runFleet(t, ctx)
	contested := contended
	contested.Pace = faultPace
	m := scenario.NewMarket(ctx, t, o.doors, contested)
	w := &writer{market: m}
	w.begin(t, ctx)
	playlists := map[string]string{"first": uploadText(t, ctx, o, "the first"), "second": uploadText(t, ctx, o, "the second")}

	stop := make(chan struct{})
	m.Open(ctx, faultBuyers, math.MaxInt64, seed)
	var working sync.WaitGroup
	working.Go(func() {
		every(ctx, stop, editEvery, func(n int) {
			if err := w.edit(ctx, m.Buyers[n%len(m.Buyers)], n); err != nil {
				w.failed++
			}
		})
	})
	shown, unshown := 0, 0
	working.Go(func() {
		every(ctx, stop, showEvery, func(n int) {
			creative := []string{"second", "first"}[n%2]
			if fleet.Show(ctx, creative, playlists[creative]) == nil {
				shown++
			} else {
				unshown++ // of some displays
			}
		})
	})
	finish := sync.OnceFunc(func() {
		close(stop)
		working.Wait()
		m.Close()
	})
	defer finish()

	table := breakThings(t, ctx, plan, fleet)
	over := time.Now()
	finish()
	t.Logf("what happened:\n%s", table)
	for _, s := range the.Services() {
		_, err := the.Jobs().WaitReady(ctx, s.Name)
		require.NoError(t, err)
	}
	t.Logf("all services are healthy %.1f s after the last fault", time.Since(over).Seconds())
	fleet.Online(ctx, t, "after the last fault")
	t.Logf("%d edits, %d approved, %d not booked anywhere, %d calls failed; %d changes of all playlists, %d not of all", w.edits, w.approved, w.unasked, w.failed, shown, unshown)
	require.NotZero(t, w.approved)
	m.Check(ctx, t)
	checkSales(t, ctx)

	scenario.Eventually(ctx, t, time.Minute, "all displays have another playlist", func() error {
		return fleet.Show(ctx, "second", playlists["second"])
	})
	fleet.Showing(ctx, t, "second")
	fleet.Finish(ctx, t)
	checkPlays(t, ctx)
}
