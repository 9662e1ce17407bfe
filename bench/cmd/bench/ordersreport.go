package main

import (
	"fmt"
	"runtime"
	"strings"
	"time"
)

// report renders what was measured of orders as a section of the document.
func (o *orders) report() string {
	var w strings.Builder
	fmt.Fprintf(&w, `
## Air time that is sold

A booking is a HoldOrder and a BookOrder of one slot of one display for a day: two transactions in Postgres, which syncs each commit to disk. %d callers book at a time,

- **directly**: in the mesh, from this process to the order service, which reaches Postgres through the mesh and the mesh proxy;
- **gateway**: the same by gRPC at the gateway;
- **pgbench**: the same SQL statements, recorded when the service made one booking, on Postgres's Unix socket, with prepared statements and as many clients. Ids, displays, days and wallets vary as they do for the service; all other values are those that were recorded. It does not work out what a line costs or when it is on, makes no event readable, and checks no token.

Apart, each caller has a wallet of its own and no display is wanted by two at a time. Contended, all pay from one wallet and want slots of %d displays. Before, there were as many bookings as the first column says, of %d displays with %d slots.

`+"`make bench BENCH='-only orders'`"+` prints this section alone. Run on %s, %s, a machine with **%d cores** that client, services and Postgres share: each row was measured %d times for %s, the rows in turn; figures are medians over the rounds.

| stored | wanted | by | bookings/s | p50 | p99 | CPU of a booking | of which |
|---|---|---|---|---|---|---|---|
`, bookingCallers, contendedDisplays, soldDisplays, soldSlots, time.Now().UTC().Format(time.DateOnly), cpuModel(), runtime.NumCPU(), o.rounds, o.each)
	for i, s := range o.stored {
		for _, r := range s.rows {
			fmt.Fprintf(&w, "| %d | %s | %s | %.0f | %s | %s | %s |\n", storedBookings()[i], r.method, r.by, r.median(rate), r.duration(p50), r.duration(p99), r.cpuCells())
		}
	}
	if o.pgbench == nil {
		w.WriteString("\n" + noPgbench + ".\n")
	} else {
		w.WriteString("\nThe figure divided by that of pgbench, the median of the rounds with the least and the greatest; the goal is 0.7 of its bookings a second, directly:\n\n| stored | wanted | by | bookings/s | p50 | p99 |\n|---|---|---|---|---|---|\n")
		for i, s := range o.stored {
			var alone *row
			for _, r := range s.rows {
				if r.by == "pgbench" {
					alone = r
					continue
				}
				fmt.Fprintf(&w, "| %d | %s | %s | %s | %s | %s |\n", storedBookings()[i], r.method, r.by, r.ratio(alone, rate), r.ratio(alone, p50), r.ratio(alone, p99))
			}
		}
	}
	fmt.Fprintf(&w, `
### A search for air time

SearchAvailability for a week on which most of %d bookings are: the first page of %d of %d displays, by place, venue type and screen, one caller. pgbench executes the statements of such a search.

| by | searches/s | p50 | p99 | CPU of a search | of which |
|---|---|---|---|---|---|
`, storedBookings()[len(storedBookings())-1], searchPage, soldDisplays)
	for _, r := range o.searched.rows {
		fmt.Fprintf(&w, "| %s | %.0f | %s | %s | %s |\n", r.by, r.median(rate), r.duration(p50), r.duration(p99), r.cpuCells())
	}
	if rows := o.searched.rows; len(rows) > 1 {
		fmt.Fprintf(&w, "\nDirectly, divided by pgbench: p50 %s, p99 %s.\n", rows[0].ratio(rows[1], p50), rows[0].ratio(rows[1], p99))
	}
	return w.String()
}
