package order

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/marquee-ads/marquee/platform/fault"
)

// What the playlists of the device service answer.
var (
	// ErrPlaylistsUnavailable says that they cannot be reached.
	ErrPlaylistsUnavailable = fault.New(fault.Unavailable, "PLAYLISTS_UNAVAILABLE", "playlists cannot be reached at the moment: the device service does not answer").
				WithRetryAfter(2 * time.Second)
	// ErrNoDevice says that there is no such device any more.
	ErrNoDevice = fault.New(fault.NotFound, "DEVICE_NOT_FOUND", "there is no such device")
)

// Playlists are what devices know of booked lines.
type Playlists interface {
	// Lines returns a page of the lines that devices know, by devices and lines, and
	// the token of the next page, empty on the last. Only those of these devices; of
	// all without any. Errors: ErrPlaylistsUnavailable.
	Lines(ctx context.Context, deviceIDs []string, token string) ([]BookedLine, string, error)
	// Put makes these the lines of a device, and no others, and returns how many were
	// different. Errors: ErrNoDevice, ErrPlaylistsUnavailable.
	Put(ctx context.Context, deviceID string, lines []BookedLine) (int, error)
}

// LinePosition is a place in a list of lines by devices.
type LinePosition struct {
	DeviceID, LineID string
}

func (l BookedLine) position() LinePosition { return LinePosition{l.DeviceID, l.LineID} }

func (p LinePosition) compare(other LinePosition) int {
	return cmp.Or(cmp.Compare(p.DeviceID, other.DeviceID), cmp.Compare(p.LineID, other.LineID))
}

// SoldLine is a line as its display was told of it.
type SoldLine struct {
	BookedLine
	// Behind says that it should show something else by now.
	Behind bool
}

const (
	soldPage = 1000
	// recheckDevices is of how many devices the differences are looked at again.
	recheckDevices = 1000
	recheckPause   = 500 * time.Millisecond
)

// Rebuilt is what Rebuild did.
type Rebuilt struct {
	// Displays is how many there are, Changed how many lines were different on them.
	Displays, Changed int
	// Told is how many lines showed what they should not by now.
	Told int
	// Gone are displays with sold lines that have no device any more.
	Gone []string
}

// Rebuild makes all playlists anew from what is sold. It can be done while everything
// runs, and gives what the events give.
func (s *Service) Rebuild(ctx context.Context, playlists Playlists) (done Rebuilt, err error) {
	if done.Told, err = s.tellBehind(ctx); err != nil {
		return done, err
	}
	for after := ""; ; {
		ids, err := s.store.DisplayIDs(ctx, after, soldPage)
		if err != nil {
			return done, fmt.Errorf("reading the displays: %w", err)
		}
		for _, id := range ids {
			changed, gone, err := s.rebuild(ctx, playlists, id)
			if err != nil {
				return done, fmt.Errorf("rebuilding the playlist of %s: %w", id, err)
			}
			done.Displays, done.Changed = done.Displays+1, done.Changed+changed
			if gone {
				done.Gone = append(done.Gone, id)
			}
			after = id
		}
		if len(ids) < soldPage {
			return done, nil
		}
	}
}

// rebuild puts the lines of one display. While it does, none is booked on it or
// cancelled: else what is booked after they were read would be taken away again.
func (s *Service) rebuild(ctx context.Context, playlists Playlists, deviceID string) (changed int, gone bool, err error) {
	err = s.store.KeepSold(ctx, deviceID, s.moment(), func(ctx context.Context, lines []BookedLine) error {
		changed, err = playlists.Put(ctx, deviceID, lines)
		switch {
		case errors.Is(err, ErrNoDevice):
			gone = len(lines) > 0
			return nil
		case err != nil && ctx.Err() != nil:
			return ErrPlaylistsUnavailable.Because(err) // its time, not the database's
		}
		return err
	})
	return changed, gone, err
}

// tellBehind tells displays of lines that should show something else by now.
func (s *Service) tellBehind(ctx context.Context) (told int, err error) {
	now := s.moment()
	for after := (LinePosition{}); ; {
		page, err := s.store.Sold(ctx, nil, now, after, soldPage)
		if err != nil {
			return told, fmt.Errorf("reading what is sold: %w", err)
		}
		var behind []string
		for _, l := range page {
			after = l.position()
			if l.Behind {
				behind = append(behind, l.LineID)
			}
		}
		if len(behind) > 0 {
			if err := s.store.TellAgain(ctx, behind, now); err != nil {
				return told, fmt.Errorf("telling displays: %w", err)
			}
			told += len(behind)
		}
		if len(page) < soldPage {
			return told, nil
		}
	}
}

// Checked is what CheckPlaylists found.
type Checked struct {
	// Lines is how many are sold.
	Lines int
	// Findings are the differences in words, by devices and lines.
	Findings []string
}

// CheckPlaylists compares what devices know with what is sold. What events are still
// on their way with is no difference: the differences of up to 1,000 devices are
// looked at again until there are none or the patience is over.
func (s *Service) CheckPlaylists(ctx context.Context, playlists Playlists, patience time.Duration) (Checked, error) {
	lines, found, err := s.compare(ctx, playlists, nil)
	if err != nil {
		return Checked{}, err
	}
	for deadline := s.now().Add(patience); len(found) > 0 && s.now().Before(deadline); {
		ids := devicesOf(found)
		if len(ids) > recheckDevices {
			break
		}
		timer := time.NewTimer(recheckPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return Checked{}, fmt.Errorf("waiting to look again: %w", ctx.Err())
		}
		if _, found, err = s.compare(ctx, playlists, ids); err != nil {
			return Checked{}, err
		}
	}
	checked := Checked{Lines: lines}
	for _, d := range found {
		checked.Findings = append(checked.Findings, fmt.Sprintf("device %s line %s: %s", d.at.DeviceID, d.at.LineID, d.why))
	}
	return checked, nil
}

// difference is a line that a device knows otherwise than it was sold.
type difference struct {
	at  LinePosition
	why string
}

func devicesOf(found []difference) []string {
	var ids []string
	for _, d := range found {
		ids = append(ids, d.at.DeviceID)
	}
	return slices.Compact(ids) // they are in order
}

// compare goes along both lists, which have the same order.
func (s *Service) compare(ctx context.Context, playlists Playlists, deviceIDs []string) (lines int, found []difference, err error) {
	now, after := s.moment(), LinePosition{}
	sold := list[SoldLine]{read: func(ctx context.Context) ([]SoldLine, bool, error) {
		page, err := s.store.Sold(ctx, deviceIDs, now, after, soldPage)
		if err != nil {
			return nil, false, fmt.Errorf("reading what is sold: %w", err)
		}
		if len(page) > 0 {
			after = page[len(page)-1].position()
		}
		return page, len(page) == soldPage, nil
	}}
	token := ""
	known := list[BookedLine]{read: func(ctx context.Context) (page []BookedLine, more bool, err error) {
		if page, token, err = playlists.Lines(ctx, deviceIDs, token); err != nil {
			return nil, false, fmt.Errorf("reading what devices know: %w", err)
		}
		return slices.DeleteFunc(page, func(l BookedLine) bool { return l.Removed || !l.End.After(now) }), token != "", nil
	}}
	for {
		s, err := sold.first(ctx)
		if err != nil {
			return lines, nil, err
		}
		k, err := known.first(ctx)
		if err != nil {
			return lines, nil, err
		}
		switch {
		case s == nil && k == nil:
			return lines, found, nil
		case k == nil || s != nil && s.position().compare(k.position()) < 0:
			found = append(found, difference{s.position(), "it is sold, and the device does not know it"})
		case s == nil || k.position().compare(s.position()) < 0:
			found = append(found, difference{k.position(), "the device knows it, and it is not sold"})
			known.drop()
			continue
		default:
			if why := differs(*s, *k); why != "" {
				found = append(found, difference{s.position(), why})
			}
			known.drop()
		}
		lines++
		sold.drop()
	}
}

// differs says in what a line that is sold and what a device knows of it differ;
// empty when they agree.
func differs(sold SoldLine, known BookedLine) string {
	switch {
	case sold.Behind:
		return "its display was not told what it should show by now"
	case sold.Revision != known.Revision:
		return fmt.Sprintf("it is sold in revision %d, and the device knows revision %d", sold.Revision, known.Revision)
	case sold.Flight != known.Flight || !slices.Equal(sold.Dayparts, known.Dayparts) || !sold.Start.Equal(known.Start) || !sold.End.Equal(known.End):
		return "the device knows other times than were sold"
	case !slices.Equal(sold.Slots, known.Slots):
		return fmt.Sprintf("the slots %v are sold, and the device knows %v", sold.Slots, known.Slots)
	case !sold.Showing.equal(known.Showing):
		return fmt.Sprintf("it shows %s, and the device knows %s", sold.Showing, known.Showing)
	}
	return ""
}

func (o *Showing) equal(other *Showing) bool {
	if o == nil || other == nil {
		return o == other
	}
	return *o == *other
}

// String names a showing for people.
func (o *Showing) String() string {
	if o == nil {
		return "nothing"
	}
	return o.ID + " (" + o.MediaType + " " + o.SHA256 + ")"
}

// list is what is left of a list that is read by pages.
type list[T any] struct {
	read func(context.Context) (page []T, more bool, err error)
	page []T
	done bool
}

// first is the first of what is left; nil when nothing is.
func (l *list[T]) first(ctx context.Context) (*T, error) {
	for len(l.page) == 0 && !l.done {
		page, more, err := l.read(ctx)
		if err != nil {
			return nil, err
		}
		l.page, l.done = page, !more
	}
	if len(l.page) == 0 {
		return nil, nil
	}
	return &l.page[0], nil
}

func (l *list[T]) drop() { l.page = l.page[1:] }

// CheckedLedger is what CheckLedger found.
type CheckedLedger struct {
	// Entries and Orders are how many it went over: orders that are or were booked.
	Entries, Orders int64
	// Findings are what does not fit together, in words.
	Findings []string
}

// CheckLedger goes over all of the ledger, as it was at one moment.
func (s *Service) CheckLedger(ctx context.Context) (checked CheckedLedger, err error) {
	if checked.Findings, err = s.store.CheckLedger(ctx); err != nil {
		return CheckedLedger{}, fmt.Errorf("checking the ledger: %w", err)
	}
	if checked.Entries, checked.Orders, err = s.store.LedgerSize(ctx); err != nil {
		return CheckedLedger{}, fmt.Errorf("counting the ledger's entries: %w", err)
	}
	return checked, nil
}
