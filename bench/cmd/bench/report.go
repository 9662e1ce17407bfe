package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

func rate(s sample) float64 { return s.rate }
func p50(s sample) float64  { return float64(s.p50) }
func p99(s sample) float64  { return float64(s.p99) }

// own is the CPU of the row's first process: the one the row is about.
func own(s sample) float64 { return s.cpu[0] }

// report renders the rows as the document.
func (b *bench) report() string {
	var w strings.Builder
	fmt.Fprintf(&w, `# Performance

Written by `+"`make bench`"+` on %s: %s, %d cores, %s. Each row was measured %d times for %s, the rows in turn, %d calls under way at a time from one client process on the same machine; figures are medians over the rounds, ratios are medians of the ratios within a round. Absolute figures depend on the machine: read the ratios.

All Go processes run with GOGC=400, which is what our services set for themselves. All rows make the same unary call with a message of %d bytes. REST rows are a GET with keep-alive. A proxy's row counts the proxy's own CPU and, apart from it, that of the service behind it.

| row | calls/s | p50 | p99 | CPU s per 10,000 calls | of which |
|---|---|---|---|---|---|
`, time.Now().UTC().Format(time.DateOnly), cpuModel(), runtime.NumCPU(), runtime.Version(), b.rounds, b.each, callers, len(text))
	byName := map[string]*row{}
	for _, r := range b.rows {
		byName[r.name] = r
		var parts []string
		total := 0.0
		for i := range r.samples[0].cpu {
			name := "client"
			if i < len(r.processes) {
				name = r.processes[i].name
			}
			v := r.median(func(s sample) float64 { return s.cpu[i] })
			total += v
			parts = append(parts, fmt.Sprintf("%s %.2f", name, v))
		}
		fmt.Fprintf(&w, "| %s | %.0f | %s | %s | %.2f | %s |\n", r.name, r.median(rate),
			time.Duration(r.median(p50)).Round(time.Microsecond), time.Duration(r.median(p99)).Round(10*time.Microsecond), total, strings.Join(parts, ", "))
	}
	w.WriteString("\n## Compared\n\n| row | with | calls/s | CPU of the row's own process | p99 |\n|---|---|---|---|---|\n")
	for _, r := range b.rows {
		other := byName[r.against]
		if other == nil {
			continue
		}
		fmt.Fprintf(&w, "| %s | %s | %.2f | %.2f | %.2f |\n", r.name, other.name, r.ratio(other, rate, rate), r.ratio(other, own, own), r.ratio(other, p99, p99))
	}
	if m, p := byName["mesh-native"], byName["plaintext"]; m != nil && p != nil {
		fmt.Fprintf(&w, "| %s | %s | %.2f | %.2f | %.2f |\n", m.name, p.name, m.ratio(p, rate, rate), m.ratio(p, own, own), m.ratio(p, p99, p99))
	}
	w.WriteString("\n## What is switched on in each row\n\n")
	for _, r := range b.rows {
		fmt.Fprintf(&w, "- **%s**: %s.\n", r.name, r.what)
	}
	return w.String()
}

func cpuModel() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err == nil {
		for line := range strings.Lines(string(info)) {
			if name, model, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				return strings.TrimSpace(model)
			}
		}
	}
	return runtime.GOARCH
}
