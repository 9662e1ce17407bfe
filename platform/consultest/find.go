package consultest

import (
	"context"
	"testing"
	"time"

	"github.com/marquee-ads/marquee/platform/tools"
)

// findConsul is the consul that this checkout built, or else the one on PATH.
func findConsul(tb testing.TB) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	path, err := tools.Find(ctx, tools.Consul)
	if err != nil {
		tb.Fatalf("consultest: find the agent: %v", err)
	}
	return path
}
