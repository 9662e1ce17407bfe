package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

func rate(s sample) float64    { return s.rate }
func refused(s sample) float64 { return s.refused }
func p50(s sample) float64     { return float64(s.p50) }
func p99(s sample) float64     { return float64(s.p99) }

// own is the CPU of the row's first process: the one the row is about.
func own(s sample) float64 { return s.cpu[0] }

// served is the CPU of all of the row's processes but the caller's.
func served(s sample) float64 {
	total := 0.0
	for _, used := range s.cpu[:len(s.cpu)-1] {
		total += used
	}
	return total
}

// report renders the calls of the echo service as the document's beginning.
func (s *series) report() string {
	var w strings.Builder
	fmt.Fprintf(&w, `# Performance

Written by `+"`make bench`"+` on %s: %s, %d cores, %s. Each row was measured %d times for %s, the rows in turn, %d calls under way at a time from one client process on the same machine; figures are medians over the rounds, ratios are medians of the ratios within a round, with the least and the greatest of them. Absolute figures depend on the machine: read the ratios.

All Go processes run with GOGC=400, which is what our services set for themselves. All rows make the same unary call with a message of %d bytes. REST rows are a GET with keep-alive. A proxy's row counts the proxy's own CPU and, apart from it, that of the service behind it.

| row | calls/s | p50 | p99 | CPU of a call | of which |
|---|---|---|---|---|---|
`, time.Now().UTC().Format(time.DateOnly), cpuModel(), runtime.NumCPU(), runtime.Version(), s.rounds, s.each, echoCallers, len(text))
	byName := map[string]*row{}
	for _, r := range s.rows {
		byName[r.name] = r
		fmt.Fprintf(&w, "| %s | %.0f | %s | %s | %s |\n", r.name, r.median(rate), r.duration(p50), r.duration(p99), r.cpuCells())
	}
	w.WriteString("\n## Compared\n\nThe row's figure divided by the other's.\n\n| row | with | calls/s | CPU of the row's own process | p99 |\n|---|---|---|---|---|\n")
	for _, r := range s.rows {
		for _, name := range r.against {
			if other := byName[name]; other != nil {
				fmt.Fprintf(&w, "| %s | %s | %s | %s | %s |\n", r.name, name, r.ratio(other, rate), r.ratio(other, own), r.ratio(other, p99))
			}
		}
	}
	w.WriteString("\n## What is switched on in each row\n\n")
	for _, r := range s.rows {
		fmt.Fprintf(&w, "- **%s**: %s.\n", r.name, r.what)
	}
	return w.String()
}

// accountReport renders the calls of accounts as a section of the document. The
// rows come in pairs, the one handler's first.
func (s *series) accountReport() string {
	var w strings.Builder
	fmt.Fprintf(&w, `
## Accounts, by one handler and by the platform

The same three requests over HTTP, answered by

- **one handler**: bench/cmd/monolith, a yardstick: HTTP and JSON by net/http, its own SQL on Postgres's Unix socket, in plaintext;
- **platform**: the gateway, the mesh, the account service, the mesh, the mesh proxy, and the same Postgres.

Both work on the same tables, write the same rows for a sign-up (account, request id, audit event) and a log-in (session, audit event, after reading the budgets of wrong passwords and the roles), keep the same rules and give the same answers, which a test compares. Both hash with the account service's own hasher and its defaults: argon2id with 19 MiB and 2 passes, half the cores at once, and the same bound on who may wait; and verify access tokens with platform/auth. Both have one instance and ten connections to Postgres, which syncs each commit to disk. One handler leaves out: encryption and identities between processes, metrics, tracing, request ids and access logs, retries after a lost connection, device tokens, the renewal of sessions and of signing keys, log-out and its effect on tokens, and making the repeats of a sign-up wait before they are hashed for.

A sign-up and a log-in are one password hash each; a read is one SELECT by primary key behind a verified access token. Log-ins are to %d accounts with the right passwords, so that no budget of wrong ones is touched. More callers than can be hashed for in time are refused with 429 and Retry-After; a refused caller waits for that long, and up to as long again, before its next call. Latencies are those of accepted calls; CPU is all that was used, for refusals as well, for each accepted call.

The last column says where the CPU goes. The gateway's is HTTP, JSON and the mesh's TLS; account's is the same TLS twice, towards the gateway and towards the database, and what every service does for a call; the mesh proxy's is TLS and copying.

`+"`make bench BENCH='-only account'`"+` prints this section alone. Run on %s, %s, a machine with **%d cores** that client, services and Postgres share: each row was measured %d times for %s, the rows in turn; figures are medians over the rounds.

| call | callers | by | accepted/s | refused/s | p50 | p99 | CPU of a call | of which |
|---|---|---|---|---|---|---|---|---|
`, people, time.Now().UTC().Format(time.DateOnly), cpuModel(), runtime.NumCPU(), s.rounds, s.each)
	for _, r := range s.rows {
		fmt.Fprintf(&w, "| %s | %d | %s | %.0f | %.0f | %s | %s | %s |\n", r.method, r.callers, r.by, r.median(rate), r.median(refused), r.duration(p50), r.duration(p99), r.cpuCells())
	}
	w.WriteString("\nThe platform's figure divided by that of one handler, the median of the rounds with the least and the greatest; CPU is that of all processes but the client:\n\n| call | callers | accepted/s | p50 | p99 | CPU of a call |\n|---|---|---|---|---|---|\n")
	for i := 0; i+1 < len(s.rows); i += 2 {
		one, platform := s.rows[i], s.rows[i+1]
		fmt.Fprintf(&w, "| %s | %d | %s | %s | %s | %s |\n", platform.method, platform.callers, platform.ratio(one, rate), platform.ratio(one, p50), platform.ratio(one, p99), platform.ratio(one, served))
	}
	return w.String()
}

// cpuCells are the CPU of a call, and that of each process.
func (r *row) cpuCells() string {
	var parts []string
	total := 0.0
	for i := range r.samples[0].cpu {
		name := "client"
		if i < len(r.processes) {
			name = r.processes[i].name
		}
		used := r.median(func(s sample) float64 { return s.cpu[i] })
		total += used
		parts = append(parts, name+" "+short(used*float64(time.Second)))
	}
	return short(total*float64(time.Second)) + " | " + strings.Join(parts, ", ")
}

func (r *row) duration(of func(sample) float64) string { return short(r.median(of)) }

// short writes nanoseconds as a duration with three digits that count.
func short(nanoseconds float64) string {
	d, unit := time.Duration(nanoseconds), time.Nanosecond
	for d/unit >= 1000 {
		unit *= 10
	}
	return d.Round(unit).String()
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
