package main

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/marquee-ads/marquee/bench/fleet"
)

// memoryGoal is what a display may take at most, in bytes.
const memoryGoal = 40 << 10

// each is a part of the difference for one display, in bytes.
func (d *displays) each(before, after int64) float64 {
	return float64(after-before) / float64(d.count)
}

// report renders what was measured as a section of the document.
func (d *displays) report() string {
	var w strings.Builder
	fmt.Fprintf(&w, `
## Devices

%d displays, connected to one instance of the device service on its own port for MQTT, and to brokers that do nothing else:

- **device service**: deviced as the platform runs it, with the Postgres of production behind the mesh proxy, and NATS: it looks each display up in the database when it connects, and records there that it did. GOGC=400 and a limit of 192 MiB are what it sets for itself; the job gives it 256 MiB.
- **mosquitto**: Debian's, with a password file of all displays (PBKDF2, its default), nothing kept on disk.
- **nats-server**: with its MQTT and JetStream, the version that the platform runs, GOGC as it is by default, no passwords.

The displays are clients of one other process, which speaks MQTT 3.1.1 and does nothing that is not asked for, so that what is measured is the broker. `+"`make bench BENCH='-only devices'`"+` prints this section alone. Run on %s, %s, a machine with **%d cores** that brokers, Postgres and displays share. Each row was measured %d times, the brokers in turn; figures are medians, with the least and the greatest.
`, d.count, time.Now().UTC().Format(time.DateOnly), cpuModel(), runtime.NumCPU(), d.rounds)
	if d.count < mostDisplays {
		fmt.Fprintf(&w, "\nThere would be %d displays, but a process may have only %d files open here (ulimit -Hn).\n", mostDisplays, d.files)
	}
	if findMosquitto() == "" {
		fmt.Fprintf(&w, "\n%s.\n", capital(noMosquitto))
	}
	d.memoryReport(&w)
	d.connectReport(&w)
	d.fanOutReport(&w)
	d.playReport(&w)
	return w.String()
}

func capital(text string) string { return strings.ToUpper(text[:1]) + text[1:] }

func (d *displays) memoryReport(w *strings.Builder) {
	fmt.Fprintf(w, `
### Memory of an idle display

The proportional set size (Pss of /proc/PID/smaps_rollup) of the broker's process, which has not what the kernel keeps for its sockets: before the first display, and with all of them connected, subscribed and silent, each once it does not change any more. Go programs collect their garbage %d times before, as they do by themselves in some minutes of silence; what the runtime then keeps for more is counted.

| broker | without displays | with %d | each display | device service / it |
|---|---|---|---|---|
`, collections, d.count)
	own := d.each(d.service.before, d.service.after)
	for _, m := range d.brokers {
		its := d.each(m.before, m.after)
		fmt.Fprintf(w, "| %s | %.1f MiB | %.1f MiB | %.1f KiB | %.2f |\n", m.name, mebi(m.before), mebi(m.after), its/1024, own/its)
	}
	verdict := "which is kept"
	if own > memoryGoal {
		verdict = "which is missed"
	}
	live, stacks := d.each(d.before.live, d.after.live), d.each(d.before.stacks, d.after.stacks)
	fmt.Fprintf(w, `
The goal is at most %d KiB, %s. By its own count the device service has for each display %.1f KiB of objects in use (heap_alloc) and %.1f KiB of stacks for %.1f goroutines; of stacks only the pages that were touched are in RAM. The objects by who allocated them, from its heap profile (a sample of one in 512 KiB), for each display:

| allocated by | bytes |
|---|---|
`, memoryGoal>>10, verdict, live/1024, stacks/1024, d.each(d.before.goroutines, d.after.goroutines))
	for _, a := range d.heap {
		fmt.Fprintf(w, "| %s | %.0f |\n", a.function, d.each(0, a.bytes))
	}
	w.WriteString(eightKilobytes)
}

// eightKilobytes follows the heap profile.
const eightKilobytes = `
What 8 KiB would take, reckoned from this and not measured: another implementation of mqtt.Broker in place of the library.

- **Stacks.** The library has two goroutines for a connection: one that reads, on whose stack lie packets by value and the calls down to the database when a display connects and subscribes, and one that writes. One that only reads, and hands what came to workers that all connections share, needs 4 KiB. Without any (epoll, and workers for those that have sent something) it is none.
- **Buffers.** A connection waits with a read buffer of 1 KiB, and room for 32 messages that wait to be written. Buffers from a pool, taken when the first byte has come, and a queue that is made with the first message, are nothing for an idle display.
- **Topics.** The library keeps three nodes of its tree of topics for each display, each with maps for subscriptions, shared ones and inline ones, and the subscription twice. A display can listen to three channels of its own: that is three bits in what the plane has of the connection anyway.
- **What is left** is the socket (net.Conn, and the poller's), the session with its ids, and the plane's connection: 1 to 2 KiB, and with the stack of one goroutine 5 to 6 KiB.
`

func mebi(bytes int64) float64 { return float64(bytes) / (1 << 20) }

func (d *displays) connectReport(w *strings.Builder) {
	fmt.Fprintf(w, `
### Connects with a password

From TCP connect to CONNACK, %d at a time, until all %d are connected.

| broker | connects/s | p50 | p99 | device service / it |
|---|---|---|---|---|
`, connectsAtOnce, d.count)
	perSecond := func(m *broker) []float64 { return d.connectRates(m.connects) }
	for _, m := range d.brokers {
		if !m.checks {
			continue
		}
		var p50, p99 []float64
		for _, r := range m.connects {
			p50, p99 = append(p50, float64(r.P50)), append(p99, float64(r.P99))
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", m.name, spread(perSecond(m), "%.0f"), short(median(p50)), short(median(p99)), ratios(perSecond(d.service), perSecond(m)))
	}
	fmt.Fprintf(w, "\nThe device service's connects/s by how many plays are stored:")
	for _, at := range d.plays {
		fmt.Fprintf(w, " %d: %s.", at.stored, spread(d.connectRates(at.connects), "%.0f"))
	}
	w.WriteString("\n")
}

// connectRates are connects a second.
func (d *displays) connectRates(connects []fleet.Report) (all []float64) {
	for _, r := range connects {
		all = append(all, float64(d.count)/r.Took().Seconds())
	}
	return all
}

func (d *displays) fanOutReport(w *strings.Builder) {
	fmt.Fprintf(w, `
### One change to all

From its beginning until the last of %d displays has it. To the device service a change is one call of its API through the gateway, a command to the group of all, which it stores for each display and sends to each on its own topic; to the others it is one message to one topic. nats-server sends at QoS 0, which is not acknowledged.

| broker | QoS | until the last has it | device service / it |
|---|---|---|---|
`, d.count)
	seconds := func(m *broker) (all []float64) {
		for _, took := range m.fanOuts {
			all = append(all, took.Seconds())
		}
		return all
	}
	for _, m := range d.brokers {
		fmt.Fprintf(w, "| %s | %d | %s | %s |\n", m.name, m.qos, spread(seconds(m), "%.2f s"), ratios(seconds(d.service), seconds(m)))
	}
	fmt.Fprintf(w, "\nA playlist of its own for each display is a call for each: %d calls, %d at a time, and after %s the last display has its.\n", d.count, playlistsAtOnce, short(float64(d.playlists)))
}

func (d *displays) playReport(w *strings.Builder) {
	fmt.Fprintf(w, `
### Plays counted

%d displays hand in %d batches of %d plays each at QoS 1, one after the other: %d plays, each batch acknowledged when it is stored and summed. Then the same rows are copied with one COPY into a table with the same columns, key and partitions, in the same Postgres and with as many rows before. Stored before are so many plays, of all displays, over %d days. After each round the plays and their sums are counted. At %d stored plays the tables are filled anew before each round.

| stored before | by | plays/s | batch p50 | p99 | CPU of a play | of which |
|---|---|---|---|---|---|---|
`, handingIn, batchesEach, fleet.BatchPlays, handedIn, storedOver, storedPlays()[0])
	var compared strings.Builder
	for _, at := range d.plays {
		service, copying := playRates(at.service), playRates(at.copying)
		cpu, total := "", 0.0
		for i, p := range d.playProcesses() {
			var used []float64
			for _, round := range at.cpu {
				used = append(used, float64(round[i])/handedIn)
			}
			total += median(used)
			cpu += fmt.Sprintf(", %s %s", p.name, short(median(used)))
		}
		fmt.Fprintf(w, "| %d | device service | %s | %s | %s | %s | %s |\n", at.stored, spread(service, "%.0f"), short(median(floats(at.p50))), short(median(floats(at.p99))), short(total), cpu[2:])
		fmt.Fprintf(w, "| %d | COPY | %s | | | | |\n", at.stored, spread(copying, "%.0f"))
		fmt.Fprintf(&compared, "| %d | %s |\n", at.stored, ratios(service, copying))
	}
	fmt.Fprintf(w, "\nThe service's plays/s divided by those of COPY, the median of the rounds with the least and the greatest:\n\n| stored before | plays/s |\n|---|---|\n%s", compared.String())
}

// playRates are plays a second.
func playRates(took []time.Duration) (all []float64) {
	for _, one := range took {
		all = append(all, handedIn/one.Seconds())
	}
	return all
}

func floats(durations []time.Duration) (all []float64) {
	for _, one := range durations {
		all = append(all, float64(one))
	}
	return all
}

func median(values []float64) float64 { return middle(slices.Sorted(slices.Values(values))) }

// spread is the median of figures, with the least and the greatest.
func spread(values []float64, format string) string {
	return fmt.Sprintf(format+" ("+format+" to "+format+")", median(values), slices.Min(values), slices.Max(values))
}

// ratios are of figures divided by others of the same round.
func ratios(these, others []float64) string {
	values := make([]float64, len(these))
	for i := range these {
		values[i] = these[i] / others[i]
	}
	return spread(values, "%.2f")
}
