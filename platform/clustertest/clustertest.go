// Package clustertest gives tests a cluster of their own on this machine.
package clustertest

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/marquee-ads/marquee/platform/cluster"
)

const (
	upTimeout   = 2 * time.Minute
	wipeTimeout = 2 * time.Minute
)

// Start brings a cluster up, which is wiped when the test ends. What it does is
// in the test's log.
func Start(tb testing.TB) *cluster.Cluster {
	tb.Helper()
	// Not tb.TempDir: a cluster's folder wants a short path.
	dir, err := os.MkdirTemp("", "cluster")
	if err != nil {
		tb.Fatalf("clustertest: %v", err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Errorf("clustertest: %v", err)
		}
	})
	c, err := cluster.Open(cluster.Config{Dir: filepath.Join(dir, "c"), Progress: func(line string) { tb.Log(line) }})
	if err != nil {
		tb.Fatalf("clustertest: %v", err)
	}
	tb.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), wipeTimeout)
		defer cancel()
		if err := c.Wipe(ctx); err != nil {
			tb.Errorf("clustertest: %v", err)
		}
	})
	ctx, cancel := context.WithTimeout(tb.Context(), upTimeout)
	defer cancel()
	if err := c.Up(ctx); err != nil {
		tb.Fatalf("clustertest: %v", err)
	}
	return c
}
