package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/oklog/ulid/v2"

	"github.com/marquee-ads/marquee/bench/fleet"
)

const (
	// handingIn is how many displays hand in plays at once, and batchesEach how many
	// batches each: together they are batches of a display that was without a network
	// for two hours.
	handingIn   = 50
	batchesEach = 4
	handedIn    = handingIn * batchesEach * fleet.BatchPlays
	// storedOver is over how many days the plays began that are stored before.
	storedOver = 7
)

// storedPlays are how many plays are stored when others are handed in.
func storedPlays() []int { return []int{10_000, 1_000_000} }

// playsAt is what was measured with so many plays stored.
type playsAt struct {
	stored           int
	service, copying []time.Duration
	p50, p99         []time.Duration   // until a batch was acknowledged
	cpu              [][]time.Duration // of the processes, a round each
	connects         []fleet.Report    // of all displays
}

// copied has what plays has, for who copies into it.
const copied = `
CREATE TABLE copied (LIKE plays INCLUDING ALL) PARTITION BY RANGE (start_time);
DO $$
DECLARE
    part record;
BEGIN
    FOR part IN
        SELECT c.relname, pg_get_expr(c.relpartbound, c.oid) AS bounds FROM pg_inherits AS i
        JOIN pg_class AS c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'plays'::regclass
    LOOP
        EXECUTE format('CREATE TABLE %I PARTITION OF copied %s', replace(part.relname, 'plays', 'copied'), part.bounds);
    END LOOP;
END
$$`

func playColumns() []string {
	return []string{"device_id", "play_id", "creative_id", "start_time", "duration_ms", "counted", "receive_time"}
}

// measurePlays has displays hand in plays, and copies the same rows into a table
// like that of plays.
func (d *displays) measurePlays(ctx context.Context) error {
	if _, err := d.db.Exec(ctx, copied); err != nil {
		return fmt.Errorf("make a table like that of plays: %w", err)
	}
	for _, stored := range storedPlays() {
		at := &playsAt{stored: stored}
		d.plays = append(d.plays, at)
		if err := d.fill(ctx, stored); err != nil {
			return err
		}
		if err := d.measureConnects(ctx, at); err != nil {
			return fmt.Errorf("connects, with %d plays stored: %w", stored, err)
		}
		for _, o := range []fleet.Order{{Do: fleet.Connect, Address: d.service.address, Clients: handingIn}, {Do: fleet.Subscribe, QoS: 1}} {
			if _, err := d.players(ctx, o); err != nil {
				return err
			}
		}
		for round := range d.rounds {
			// What a round adds is much of the few, and little of the many.
			if round > 0 && stored < 10*handedIn {
				if err := d.fill(ctx, stored); err != nil {
					return err
				}
			}
			if err := d.measureRound(ctx, at); err != nil {
				return fmt.Errorf("plays, with %d stored: %w", stored, err)
			}
			fmt.Fprintf(os.Stderr, "round %d of %d  %d plays stored  %s to hand in %d, %s to copy them\n",
				round+1, d.rounds, stored, at.service[round].Round(time.Millisecond), handedIn, at.copying[round].Round(time.Millisecond))
		}
		if err := d.leave(ctx); err != nil {
			return err
		}
	}
	return nil
}

// players has the displays of the device service do something.
func (d *displays) players(ctx context.Context, o fleet.Order) (fleet.Report, error) {
	o.AtOnce, o.Within = connectsAtOnce, ordersWithin
	return d.service.fleet.do(ctx, o)
}

// leave disconnects the displays of the device service.
func (d *displays) leave(ctx context.Context) error {
	if _, err := d.players(ctx, fleet.Order{Do: fleet.Disconnect, Every: d.service.leaveEvery}); err != nil {
		return err
	}
	return d.forgotten(ctx)
}

// measureConnects connects all displays.
func (d *displays) measureConnects(ctx context.Context, at *playsAt) error {
	for range d.rounds {
		all, err := d.players(ctx, fleet.Order{Do: fleet.Connect, Address: d.service.address, Clients: d.count})
		if err != nil {
			return err
		}
		at.connects = append(at.connects, all)
		if err := d.leave(ctx); err != nil {
			return err
		}
	}
	return nil
}

// fill makes plays, their sums and the copies as they are after so many plays, each
// display's one after the other on one day.
func (d *displays) fill(ctx context.Context, stored int) error {
	if _, err := d.db.Exec(ctx, "TRUNCATE plays, plays_hourly, copied"); err != nil {
		return fmt.Errorf("empty the tables of plays: %w", err)
	}
	each, now := stored/d.count, time.Now()
	_, err := d.db.CopyFrom(ctx, pgx.Identifier{"plays"}, playColumns(), pgx.CopyFromSlice(each*d.count, func(i int) ([]any, error) {
		display, play := i/each, i%each
		start := now.Add(-time.Duration(display%storedOver)*24*time.Hour - time.Duration(each-play)*fleet.PlayLength).Truncate(time.Millisecond)
		id, err := ulid.New(ulid.Timestamp(start), rand.Reader)
		if err != nil {
			return nil, err
		}
		return []any{d.logins[display].User, id.String(), fleet.Creative, start, int32(fleet.PlayLength.Milliseconds()), true, now}, nil
	}))
	for _, statement := range []string{
		`INSERT INTO plays_hourly (device_id, creative_id, hour_time, plays, counted, duration_ms)
SELECT device_id, creative_id, date_trunc('hour', start_time, 'UTC'), count(*), count(*) FILTER (WHERE counted), sum(duration_ms) FROM plays GROUP BY 1, 2, 3`,
		"INSERT INTO copied SELECT * FROM plays",
		"ANALYZE plays, plays_hourly, copied",
	} {
		if err == nil {
			_, err = d.db.Exec(ctx, statement)
		}
	}
	if err != nil {
		return fmt.Errorf("fill the tables of plays: %w", err)
	}
	return nil
}

func (d *displays) measureRound(ctx context.Context, at *playsAt) error {
	before, _, err := d.counted(ctx)
	if err != nil {
		return err
	}
	var began time.Time
	if err := d.db.QueryRow(ctx, "SELECT now()").Scan(&began); err != nil {
		return fmt.Errorf("read the time: %w", err)
	}
	usedBefore, err := cpuOf(d.playProcesses())
	if err != nil {
		return err
	}
	report, err := d.service.fleet.do(ctx, fleet.Order{Do: fleet.HandIn, Batches: batchesEach, Within: ordersWithin})
	if err != nil {
		return err
	}
	used, err := cpuOf(d.playProcesses())
	if err != nil {
		return err
	}
	for i := range used {
		used[i] -= usedBefore[i]
	}
	at.service, at.cpu = append(at.service, report.Took()), append(at.cpu, used)
	at.p50, at.p99 = append(at.p50, report.P50), append(at.p99, report.P99)
	// Acknowledged is counted, or the figure is of nothing.
	after, summed, err := d.counted(ctx)
	if err == nil && (after-before != handedIn || summed != after) {
		err = fmt.Errorf("%d plays were handed in, %d more are stored, and the sums count %d of %d", handedIn, after-before, summed, after)
	}
	if err != nil {
		return err
	}
	return d.copyAgain(ctx, at, began)
}

// playProcesses are those that plays go through, the players last.
func (d *displays) playProcesses() []*process {
	return []*process{d.service.process, d.proxy, d.postgres, d.service.fleet.process}
}

// counted are how many plays are stored, and summed as those that count.
func (d *displays) counted(ctx context.Context) (stored, summed int, err error) {
	if err := d.db.QueryRow(ctx, "SELECT (SELECT count(*) FROM plays), (SELECT sum(counted)::bigint FROM plays_hourly)").Scan(&stored, &summed); err != nil {
		return 0, 0, fmt.Errorf("count the plays: %w", err)
	}
	return stored, summed, nil
}

// copyAgain copies the plays that were received since a time.
func (d *displays) copyAgain(ctx context.Context, at *playsAt, since time.Time) error {
	found, err := d.db.Query(ctx, "SELECT device_id, play_id, creative_id, start_time, duration_ms, counted, receive_time FROM plays WHERE receive_time >= $1", since)
	if err != nil {
		return fmt.Errorf("read the plays: %w", err)
	}
	rows, err := pgx.CollectRows(found, func(row pgx.CollectableRow) ([]any, error) { return row.Values() })
	if err != nil {
		return fmt.Errorf("read the plays: %w", err)
	}
	began := time.Now()
	n, err := d.db.CopyFrom(ctx, pgx.Identifier{"copied"}, playColumns(), pgx.CopyFromRows(rows))
	took := time.Since(began)
	if err == nil && n != handedIn {
		err = errors.New("not all of them")
	}
	if err != nil {
		return fmt.Errorf("copy %d plays: %w", n, err)
	}
	at.copying = append(at.copying, took)
	return nil
}
