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
	before, err := instances(ctx, "account")
	require.NoError(t, err)
	require.Len(t, before, 3)

	accounts := openDoors(t, ctx).Accounts()
	running := load.Start(ctx, accounts.Mixed(ctx, t))
	leaving := byHand(t, ctx, "account", "accountd")
	crashing := byHand(t, ctx, "account", "accountd")
	joined := healthy(t, ctx, "account", 5, 30*time.Second)
	now, err := instances(ctx, "account")
	require.NoError(t, err)
	added := slices.DeleteFunc(now, func(id string) bool { return slices.Contains(before, id) })
	require.Len(t, added, 2)
	t.Logf("two instances joined within %.1f s", joined.Seconds())

	// Their share, once both gateways have connected to them.
	scenario.Eventually(ctx, t, 20*time.Second, "both serve", func() error {
		_, served := running.Snapshot()
		for _, id := range added {
			if served[id] < 50 {
				return fmt.Errorf("%s has served %d calls", id, served[id])
			}
		}
		return nil
	})
	requireEven(t, ctx, running, 5)

	require.NoError(t, leaving.Process.Signal(syscall.SIGINT))
	require.NoError(t, leaving.Wait(), "Ctrl-C ends it without an error")
	healthy(t, ctx, "account", 4, 2*time.Second)

	// kill -9 leaves a registration behind, for as long as its TTL at most.
	require.NoError(t, crashing.Process.Kill())
	gone := healthy(t, ctx, "account", 3, registrationTTL+time.Second)
	t.Logf("gone %.1f s after kill -9", gone.Seconds())
	after, err := instances(ctx, "account")
	require.NoError(t, err)
	require.ElementsMatch(t, before, after)
	requireUndisturbed(t, ctx, running, accounts)
}
