package e2e

import (
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/e2e/scenario"
)

// registrationTTL is the harness's default: how long a registration outlives
// the process that keeps it alive.
const registrationTTL = 10 * time.Second

// Instances started outside Nomad join, get their share, and leave.
func TestByHand(t *testing.T) {
	ctx := begin(t, 3*time.Minute)
	d := openDoors(t, ctx)
	before, err := instances(ctx, "account")
	require.NoError(t, err)
	require.Len(t, before, 3)

	running := load.Start(ctx, mixedLoad(t, ctx, d, newSignUps(d)))
	leaving := byHand(t, ctx, "account", "accountd")
	crashing := byHand(t, ctx, "account", "accountd")
	joined := healthy(t, ctx, "account", 5, 30*time.Second)
	now, err := instances(ctx, "account")
	require.NoError(t, err)
	added := without(now, before)
	require.Len(t, added, 2)
	t.Logf("two instances joined within %.1f s", joined.Seconds())

	// Their share, once both gateways have connected to them.
	scenario.Eventually(ctx, t, 20*time.Second, "both serve", func() error {
		for _, id := range added {
			if served(running, id) < 50 {
				return fmt.Errorf("%s has served %d calls", id, served(running, id))
			}
		}
		return nil
	})
	requireEven(t, ctx, running, 5)

	require.NoError(t, leaving.Process.Signal(syscall.SIGINT))
	require.NoError(t, leaving.Wait(), "Ctrl-C ends it without an error")
	healthy(t, ctx, "account", 4, 2*time.Second)

	// kill -9 leaves a registration behind, for as long as its TTL at most.
	began := time.Now()
	require.NoError(t, crashing.Process.Kill())
	_ = crashing.Wait() // killed: that is the point
	healthy(t, ctx, "account", 3, registrationTTL+time.Second)
	t.Logf("gone %.1f s after kill -9", time.Since(began).Seconds())
	require.Less(t, time.Since(began), registrationTTL+time.Second)
	after, err := instances(ctx, "account")
	require.NoError(t, err)
	slices.Sort(before)
	slices.Sort(after)
	require.Equal(t, before, after)

	report := running.Stop()
	t.Log(report)
	require.Empty(t, report.Failed, "no call may fail")
}
