package player

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/oklog/ulid/v2"
)

const (
	// clockSince is the first year that a clock which was set can show.
	clockSince = 2024
	// maxHeld is how many plays wait in memory for the clock or the disk.
	maxHeld = 10_000
)

// heldPlay is a play that is not written down yet.
type heldPlay struct {
	Play            // without an ID until the clock is set
	began time.Time // of the clock that does not jump
}

// play shows one item after the other until ctx ends.
func (d *Display) play(ctx context.Context) {
	var held []heldPlay
	var version int64
	next := 0
	for ctx.Err() == nil {
		d.mu.Lock()
		p := d.playlist
		d.mu.Unlock()
		if p.Version != version {
			version, next = p.Version, 0
		}
		item, ok := d.nextItem(p, &next)
		if !ok {
			d.show(nil, time.Time{})
			held = d.waitForItems(ctx, held)
			continue
		}
		began := time.Now()
		d.show(&item, began.Add(item.Duration()))
		d.waitFor(ctx, item)
		if shown := time.Since(began).Milliseconds(); shown > 0 {
			held = append(held, heldPlay{Play{CreativeID: item.CreativeID, DurationMS: shown}, began})
		}
		held = d.writeDown(held)
	}
	d.show(nil, time.Time{})
	if len(held) > 0 {
		d.says("%d plays are lost: they could not be written down", len(held))
	}
}

// nextItem is the next of a playlist that is not taken down; next counts on.
func (d *Display) nextItem(p Playlist, next *int) (Item, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for range p.Items {
		item := p.Items[*next%len(p.Items)]
		*next++
		if !d.takenDown(item, p.Version) {
			return item, true
		}
	}
	return Item{}, false
}

func (d *Display) show(item *Item, until time.Time) {
	d.mu.Lock()
	before := d.status.Item
	d.status.Item, d.status.Until = item, until
	d.mu.Unlock()
	if item != nil || before != nil {
		d.observer.Shows(d, item)
	}
}

// waitFor returns when the item was shown to its end, or must not be shown any more.
func (d *Display) waitFor(ctx context.Context, item Item) {
	full := time.NewTimer(item.Duration())
	defer full.Stop()
	for {
		select {
		case <-full.C:
			return
		case <-ctx.Done():
			return
		case <-d.changed:
			d.mu.Lock()
			stays := d.playlist.shows(item) && !d.takenDown(item, d.playlist.Version)
			d.mu.Unlock()
			if !stays {
				return
			}
		}
	}
}

// waitForItems returns when there may be something to show, or plays were written down
// that were held.
func (d *Display) waitForItems(ctx context.Context, held []heldPlay) []heldPlay {
	for {
		pause := time.Hour
		if len(held) > 0 {
			pause = time.Second
		}
		timer := time.NewTimer(pause)
		select {
		case <-d.changed:
		case <-ctx.Done():
		case <-timer.C:
			held = d.writeDown(held)
			continue
		}
		timer.Stop()
		return held
	}
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
	if wall.Year() < clockSince {
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
