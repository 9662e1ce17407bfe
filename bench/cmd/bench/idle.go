package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// figure is a line of the benchmark's output: its name and its queries/s.
var figure = regexp.MustCompile(`(?m)^BenchmarkIdleResolvers/(\S+?)(?:-\d+)?\s.*?([0-9.]+) queries/s`)

// idleResolvers runs the discovery package's benchmark, which counts the
// requests to a real agent, and renders its figures.
func idleResolvers(ctx context.Context, root string) (string, error) {
	fmt.Fprintln(os.Stderr, "counting the queries of 100 idle resolvers (two and a half minutes)")
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "IdleResolvers", "-benchtime", "1x", "./discovery")
	cmd.Dir = filepath.Join(root, "platform")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("count the queries of idle resolvers: %w\n%s", err, out)
	}
	rows := figure.FindAllStringSubmatch(string(out), -1)
	if len(rows) == 0 {
		return "", fmt.Errorf("count the queries of idle resolvers: no figure in\n%s", out)
	}
	var w strings.Builder
	w.WriteString("\n## What idle resolvers cost the Consul agent\n\nRequests per second in the steady state, nothing changing; watches of the same service in one process share one query.\n\n| resolvers in one process | queries/s |\n|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&w, "| %s | %s |\n", strings.ReplaceAll(r[1], "_", " "), r[2])
	}
	return w.String(), nil
}
