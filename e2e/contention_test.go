package e2e

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/scenario"
)

const (
	// buyersVariable says how many people buy at once in TestContention, and
	// attemptsVariable how often they try to, all together, for example 20000.
	buyersVariable   = "MARQUEE_E2E_BUYERS"
	buyersDefault    = 200
	attemptsVariable = "MARQUEE_E2E_ATTEMPTS"
	attemptsDefault  = 4000
)

// contended is the market of which all want the slots.
var contended = scenario.MarketConfig{Displays: 5, Slots: 10, Buyers: 20}

// number is that of an environment variable.
func number(t *testing.T, variable string, otherwise int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err, variable)
	require.Positive(t, n, variable)
	return n
}

// Many want few slots: they hold, forget, book, cancel and repeat themselves, and an
// instance of order dies meanwhile. Each slot is sold once, what was acknowledged is
// there and nothing else, and no money appears or vanishes.
func TestContention(t *testing.T) {
	people, attempts := number(t, buyersVariable, buyersDefault), int64(number(t, attemptsVariable, attemptsDefault))
	ctx := begin(t, 4*time.Minute+time.Duration(attempts)*50*time.Millisecond)
	m := scenario.NewMarket(ctx, t, openDoors(t, ctx), contended)
	m.Open(ctx, people, attempts, uint64(time.Now().UnixNano())) //nolint:gosec // not negative
	defer m.Close()
	scenario.Eventually(ctx, t, 10*time.Minute, "half of the attempts are made", func() error {
		if left := m.Left(); left > attempts/2 {
			return fmt.Errorf("%d are left", left)
		}
		return nil
	})
	dead := kill(t, "orderd", 1)
	excluded, restored := recovery(t, ctx, "order", "orderd", 2, dead)
	m.Wait()
	require.NoError(t, ctx.Err(), "%d attempts are left", m.Left())
	t.Logf("killed 1 of 2 of order; excluded by Consul %s; both healthy again after %.1f s", excluded, restored.Seconds())
	m.Check(ctx, t)
	checkSales(t, ctx)
}
