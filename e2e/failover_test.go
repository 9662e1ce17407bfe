package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/e2e/scenario"
)

// Instances die as in a crash, and callers do not notice.
func TestFailover(t *testing.T) {
	for _, c := range []struct {
		name, service, program string
		kill, of               int
	}{
		{"OneAccount", "account", "accountd", 1, 3},
		{"TwoOfThreeAccounts", "account", "accountd", 2, 3},
		{"OneGateway", "gateway", "gatewayd", 1, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := begin(t, 3*time.Minute)
			accounts := openDoors(t, ctx).Accounts()
			running := load.Start(ctx, accounts.Mixed(ctx, t))
			scenario.AtLeast(ctx, t, running, 200)
			dead := kill(t, c.program, c.kill)
			excluded, restored := recovery(t, ctx, c.service, c.program, c.of, dead)
			serving := restored + requireEven(t, ctx, running, 3)
			t.Logf("%s: killed %d of %d %s; excluded by Consul %s; all healthy again after %.1f s, all serving after %.1f s",
				c.name, c.kill, c.of, c.service, excluded, restored.Seconds(), serving.Seconds())
			requireUndisturbed(t, ctx, running, accounts)
		})
	}
}

// recovery watches a service of which some processes were just killed until as
// many as before run and are healthy. It tells when Consul excluded the dead: it
// may not get to, because Nomad can be quicker to restart a process than Consul,
// which checks once a second, is to miss it. Callers do not wait for either:
// they leave an instance when its connection breaks.
func recovery(t *testing.T, ctx context.Context, service, program string, of int, dead map[string]int) (excluded string, restored time.Duration) {
	t.Helper()
	excluded = "never, as Nomad was quicker"
	began := time.Now()
	restored = scenario.Eventually(ctx, t, time.Minute, fmt.Sprintf("%d processes of %s run and are healthy", of, service), func() error {
		ids, err := instances(ctx, service)
		if err != nil {
			return err
		}
		if len(ids) < of {
			if strings.HasPrefix(excluded, "never") {
				excluded = fmt.Sprintf("after %.1f s", time.Since(began).Seconds())
			}
			return fmt.Errorf("%d are healthy", len(ids))
		}
		alive := processes(t, program)
		for alloc, pid := range dead {
			if alive[alloc] == pid {
				return fmt.Errorf("the killed process %d is still there", pid)
			}
		}
		if len(alive) != of {
			return fmt.Errorf("%d run", len(alive))
		}
		return nil
	})
	return excluded, restored
}
