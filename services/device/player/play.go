package player

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"
)

const (
	// clockSince is the first year that a clock which was set can show.
	clockSince = 2024
	// lookEvery is how often the clock is looked at: it may jump.
	lookEvery = time.Second
	// early is by how much another period begins before its time, so that nothing of
	// the one before it is begun a moment before its end.
	early = 50 * time.Millisecond
	// maxHeld is how many plays wait in memory for the clock or the disk.
	maxHeld = 10_000
)

// heldPlay is a play that is not written down yet.
type heldPlay struct {
	Play            // without an ID until the clock is set
	began time.Time // of the clock that does not jump
}

// clockSet says whether what a clock shows can be the time.
func clockSet(wall time.Time) bool { return wall.Year() >= clockSince }

// play shows one item after the other until ctx ends.
func (d *Display) play(ctx context.Context) {
	var held []heldPlay
	var version int64
	var loop []Item
	next := 0
	var due time.Time // when the next item is to begin; zero is whenever it does
	for ctx.Err() == nil {
		now, of := d.slot()
		version = of
		// A playlist that changes something else does not begin the loop again: the end
		// of it would be left out each time.
		if !slices.Equal(now.items, loop) {
			loop, next = now.items, 0
		}
		item, ok := d.nextItem(loop, version, &next)
		if !ok {
			d.show(nil, now.until, now.off)
			held = d.waitForItems(ctx, held)
			due = time.Time{}
			continue
		}
		began := time.Now()
		until := endOf(item, due, began)
		d.show(&item, until, false)
		due = time.Time{}
		if d.waitFor(ctx, item, until) {
			due = until
		}
		if shown := time.Since(began).Milliseconds(); shown > 0 {
			held = append(held, heldPlay{Play{CreativeID: item.CreativeID, DurationMS: shown}, began})
		}
		held = d.writeDown(held)
	}
	d.show(nil, time.Time{}, false)
	if len(held) > 0 {
		d.says("%d plays are lost: they could not be written down", len(held))
	}
}

// endOf is when an item ends that was due at a time and has begun a moment after it:
// as if it had not been late, so that moments do not add up over the loops of a day.
func endOf(item Item, due, began time.Time) time.Time {
	if late := began.Sub(due); late < 0 || late > min(item.Duration()/25, 250*time.Millisecond) {
		due = began
	}
	return due.Add(item.Duration())
}

// clock is the one that the schedule is followed by.
func (d *Display) clock() time.Time { return d.wall().Add(early) }

// slot is what the playlist has for now, and the playlist's version.
func (d *Display) slot() (slot, int64) {
	d.mu.Lock()
	p := d.playlist
	d.mu.Unlock()
	return p.at(d.clock()), p.Version
}

// nextItem is the next of a loop that is there and not taken down; next counts on.
func (d *Display) nextItem(loop []Item, version int64, next *int) (Item, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for range loop {
		item := loop[*next%len(loop)]
		*next++
		if d.there[item.SHA256] && !d.takenDown(item, version) {
			return item, true
		}
	}
	return Item{}, false
}

// show says what is shown from now on, until when, and whether it is nothing because
// the display is off.
func (d *Display) show(item *Item, until time.Time, off bool) {
	d.mu.Lock()
	before := d.status
	d.status.Item, d.status.Until, d.status.Off = item, until, off
	d.mu.Unlock()
	if item != nil || before.Item != nil || off != before.Off || off && !until.Equal(before.Until) {
		d.observer.Shows(d, item)
	}
}

// waitFor returns when the item was shown to its end, which is true, or must not be
// shown any more.
func (d *Display) waitFor(ctx context.Context, item Item, until time.Time) bool {
	full := time.NewTimer(time.Until(until))
	defer full.Stop()
	for {
		now, version := d.slot()
		d.mu.Lock()
		down := d.takenDown(item, version)
		d.mu.Unlock()
		if down || !now.shows(item) {
			return false
		}
		look := time.NewTimer(d.untilLook(now))
		select {
		case <-full.C:
			look.Stop()
			return true
		case <-ctx.Done():
			look.Stop()
			return false
		case <-d.changed:
		case <-look.C:
		}
		look.Stop()
	}
}

// untilLook is how long to wait until the clock may have reached the end of a slot.
func (d *Display) untilLook(now slot) time.Duration {
	if now.until.IsZero() {
		return lookEvery
	}
	return max(time.Millisecond, min(lookEvery, now.until.Sub(d.clock())))
}

// waitForItems returns when there may be something to show, and writes down plays
// that were held.
func (d *Display) waitForItems(ctx context.Context, held []heldPlay) []heldPlay {
	now, _ := d.slot()
	look := time.NewTimer(d.untilLook(now))
	defer look.Stop()
	select {
	case <-d.changed:
	case <-ctx.Done():
	case <-look.C:
		held = d.writeDown(held)
	}
	return held
}

// writeDown writes plays to the journal, if the clock is set and the disk takes them,
// and returns those that it could not.
func (d *Display) writeDown(held []heldPlay) []heldPlay {
	left, err := d.record(held)
	if over := len(left) - maxHeld; over > 0 {
		left = left[over:]
		d.update(func(s *Status) { s.Dropped += int64(over) })
	}
	was := d.Status().Held
	d.update(func(s *Status) { s.Held = int64(len(left)) })
	switch {
	case err != nil:
		d.says("%d plays wait in memory: %v", len(left), err)
	case was > 0 && len(left) == 0:
		d.says("the plays that waited in memory are written down")
	}
	return left
}

func (d *Display) record(held []heldPlay) (left []heldPlay, err error) {
	if len(held) == 0 {
		return nil, nil
	}
	wall := d.wall()
	if !clockSet(wall) {
		return held, fmt.Errorf("the clock is not set: it shows %s", wall.UTC().Format(time.DateTime))
	}
	plays := make([]Play, len(held))
	for n := range held {
		h := &held[n]
		if h.ID == "" {
			// The clock may have been set since it began.
			id, err := ulid.New(ulid.Timestamp(wall.Add(-time.Since(h.began))), rand.Reader)
			if err != nil {
				return held, fmt.Errorf("making an id: %w", err)
			}
			h.ID = id.String()
		}
		plays[n] = h.Play
	}
	dropped, err := d.journal.Append(plays...)
	d.dropped(dropped, "there is no room for more")
	if err != nil {
		return held, err
	}
	d.update(func(s *Status) { s.Plays += int64(len(plays)) })
	d.syncer.add(d.journal)
	for _, p := range plays {
		d.observer.Played(d, p)
	}
	signal(d.written)
	return nil, nil
}

func (d *Display) dropped(plays int64, why string) {
	if plays > 0 {
		d.update(func(s *Status) { s.Dropped += plays })
		d.says("the %d oldest plays are LOST: %s", plays, why)
	}
}
