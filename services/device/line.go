package device

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/paging"
)

const (
	// LinesKept is for how long booked lines are kept after their end: plays of them
	// are taken for so long.
	LinesKept = 31 * 24 * time.Hour
	// MaxLinePeriod bounds the time of which the plays of a line are summed.
	MaxLinePeriod = 400 * 24 * time.Hour
)

// BookedLine is booked air time of a device, as the service that sells it told.
type BookedLine struct {
	// ID is "lin_" and a ULID.
	ID       string
	DeviceID string
	// Revision grows with each change of the line.
	Revision int64
	Flight   airtime.Flight
	Dayparts []airtime.Opening // all of the flight without any
	// Slots are positions of the loop, from 0, ascending.
	Slots []int
	// Before Start the line is not on, and from End on it is not, whatever its flight.
	Start, End time.Time
	// Showing is what is shown; nil leaves the slots to the default playlist. Its
	// CreativeID is the line's id, "-" and a number.
	Showing *Item
	// Removed says that the line is not booked any more.
	Removed bool
	// TakenDown are ids of showings that are not shown for a moment longer; they may be
	// told with each change that follows.
	TakenDown []string
}

// LinePeriod is a line in a time.
type LinePeriod struct {
	DeviceID string
	LineID   string
	// Span has both bounds: plays of hours (UTC) that end after From and begin before
	// To.
	Span Span
}

// LinePlays sums the plays of all showings of one line.
type LinePlays struct {
	LineID string
	// Day is the day (UTC), the zero one for a sum of all.
	Day      airtime.Date
	Plays    int64
	Counted  int64
	Duration time.Duration
}

// LinePosition is a place in a list of lines.
type LinePosition struct {
	DeviceID, LineID string
}

// What the service that sells air time is told.
var (
	ErrLine       = fault.New(fault.InvalidArgument, "VALIDATION_FAILED", "a line is not possible")
	ErrLinePeriod = fault.New(fault.InvalidArgument, "VALIDATION_FAILED", "the time of a line is not possible")
)

// LineStore keeps what is booked; it is a part of Store.
type LineStore interface {
	// SumPlays are sums in the order of the lines, and of days; those without plays
	// are left out.
	SumPlays(ctx context.Context, lines []LinePeriod, byDay bool) ([]LinePlays, error)
	// ListLines returns up to limit lines that are not removed, of these devices or
	// without any of all, in the order of devices and lines, behind a position.
	ListLines(ctx context.Context, deviceIDs []string, after LinePosition, limit int) ([]BookedLine, error)
	// PutLines makes these the lines of a device, and no others, and says how many were
	// different. Those that it has in a later revision stay, and those that are over.
	// takedown makes the command for a showing that is taken down.
	PutLines(ctx context.Context, deviceID string, lines []BookedLine, now time.Time, takedown func(deviceID, showingID string) (Command, error)) (changed int, err error)
}

// Check says in words what is not possible about a line.
func (l BookedLine) Check() error {
	switch {
	case !strings.HasPrefix(l.ID, "lin_") || !creativePattern.MatchString(l.ID):
		return fmt.Errorf("line_id %.80q is not lin_ and a ULID", l.ID)
	case !idPattern.MatchString(l.DeviceID):
		return fmt.Errorf("device_id %.80q is not dev_ and a ULID", l.DeviceID)
	case l.Revision < 1:
		return fmt.Errorf("revision %d is not 1 or more", l.Revision)
	case l.Flight.Days() == 0:
		return fmt.Errorf("the flight ends on %s, before it begins on %s", l.Flight.Last, l.Flight.First)
	case l.End.Before(l.Start):
		return fmt.Errorf("it ends at %s, before it begins at %s", l.End.Format(time.RFC3339), l.Start.Format(time.RFC3339))
	case !slices.IsSorted(l.Slots) || len(slices.Compact(slices.Clone(l.Slots))) != len(l.Slots):
		return fmt.Errorf("the slots %v do not ascend", l.Slots)
	case len(l.Slots) > 0 && (l.Slots[0] < 0 || l.Slots[len(l.Slots)-1] >= MaxSlots):
		return fmt.Errorf("a slot is not from 0 to %d", MaxSlots-1)
	}
	if err := airtime.Check(l.Dayparts); err != nil {
		return fmt.Errorf("the dayparts: %w", err)
	}
	for _, id := range l.TakenDown {
		if !creativePattern.MatchString(id) {
			return fmt.Errorf("taken_down has %.80q, which is no showing", id)
		}
	}
	if l.Showing == nil {
		return nil
	}
	return l.checkShowing(*l.Showing)
}

func (l BookedLine) checkShowing(i Item) error {
	switch {
	case !strings.HasPrefix(i.CreativeID, l.ID+"-") || !creativePattern.MatchString(i.CreativeID):
		return fmt.Errorf("showing_id %.80q is not the line's id, - and a number", i.CreativeID)
	case !sha256Pattern.MatchString(i.SHA256):
		return fmt.Errorf("the showing's sha256 %.80q has not 64 hexadecimal digits", i.SHA256)
	case i.URL != mediaPath+i.SHA256:
		return fmt.Errorf("the showing's url is not %s with its sha256", mediaPath)
	case !mediaTypePattern.MatchString(i.MediaType):
		return fmt.Errorf("the showing's media_type %.80q is none", i.MediaType)
	case i.DurationMS < 1 || i.DurationMS > int((10*time.Minute).Milliseconds()):
		return fmt.Errorf("the showing's duration_ms %d is not from 1 to 600000", i.DurationMS)
	}
	return nil
}

var (
	sha256Pattern    = regexp.MustCompile(`^[0-9a-f]{64}$`)
	mediaTypePattern = regexp.MustCompile(`^[a-z]+/[a-z0-9.+-]{1,64}$`)
)

// visible says whether players can come to show it.
func (l BookedLine) visible() bool { return !l.Removed && l.Showing != nil && len(l.Slots) > 0 }

// LooksLike says whether two states of a line make the same playlists.
func (l BookedLine) LooksLike(like BookedLine) bool {
	if !l.visible() && !like.visible() {
		return true
	}
	return l.visible() == like.visible() && *l.Showing == *like.Showing && l.Flight == like.Flight && slices.Equal(l.Dayparts, like.Dayparts) &&
		slices.Equal(l.Slots, like.Slots) && l.Start.Equal(like.Start) && l.End.Equal(like.End)
}

// Equal says whether two are the same, but for what is taken down.
func (l BookedLine) Equal(o BookedLine) bool {
	showing := l.Showing == o.Showing || l.Showing != nil && o.Showing != nil && *l.Showing == *o.Showing
	return showing && l.ID == o.ID && l.DeviceID == o.DeviceID && l.Revision == o.Revision && l.Removed == o.Removed && l.Flight == o.Flight &&
		slices.Equal(l.Dayparts, o.Dayparts) && slices.Equal(l.Slots, o.Slots) && l.Start.Equal(o.Start) && l.End.Equal(o.End)
}

// Takedown is the command that has a player show a showing no more, as SendCommand
// makes it. Nobody has asked for it over the API.
func (s *Service) Takedown(deviceID, showingID string) (Command, error) {
	i, err := Instruction{Kind: Takedown, CreativeID: showingID}.completed()
	if err != nil {
		return Command{}, err
	}
	now := s.moment()
	id, err := s.newID(commandPrefix, now)
	if err != nil {
		return Command{}, err
	}
	return Command{ID: id, DeviceID: deviceID, Kind: i.Kind, CreativeID: i.CreativeID, CreateTime: now, ExpireTime: now.Add(i.Lifetime)}, nil
}

// SumPlays sums the plays of booked lines, with byDay for each day (UTC): in the order
// of the lines, and of days; those without plays are left out. Errors: ErrLinePeriod.
func (s *Service) SumPlays(ctx context.Context, lines []LinePeriod, byDay bool) ([]LinePlays, error) {
	for i, l := range lines {
		switch length := l.Span.To.Sub(l.Span.From); {
		case length <= 0:
			return nil, ErrLinePeriod.WithField(fmt.Sprintf("lines[%d].to_time", i), "period.order", "is not after from_time")
		case length > MaxLinePeriod:
			return nil, ErrLinePeriod.WithField(fmt.Sprintf("lines[%d].to_time", i), "period.length", "is more than 400 days after from_time")
		}
	}
	return s.store.SumPlays(ctx, lines, byDay)
}

// ListLines returns a page of the lines that devices have, and the token of the next,
// empty on the last. Errors: paging.ErrTokenInvalid.
func (s *Service) ListLines(ctx context.Context, deviceIDs []string, page paging.Page) ([]BookedLine, string, error) {
	const of = "booked lines"
	position, err := page.Open(of)
	if err != nil {
		return nil, "", err
	}
	var after LinePosition
	if position != "" {
		deviceID, lineID, ok := strings.Cut(position, " ")
		if !ok {
			return nil, "", paging.ErrTokenInvalid
		}
		after = LinePosition{DeviceID: deviceID, LineID: lineID}
	}
	size := page.Limit()
	found, err := s.store.ListLines(ctx, deviceIDs, after, size+1)
	if err != nil {
		return nil, "", fmt.Errorf("reading a page of %s: %w", of, err)
	}
	if len(found) <= size {
		return found, "", nil
	}
	last := found[size-1]
	return found[:size], paging.Seal(of, last.DeviceID+" "+last.ID), nil
}

// PutLines makes these the lines of a device, and no others: what events would have
// made of it. It says how many were different. Errors: ErrNotFound, ErrLine.
func (s *Service) PutLines(ctx context.Context, deviceID string, lines []BookedLine) (changed int, err error) {
	known := make(map[string]bool, len(lines))
	for i, l := range lines {
		err := l.Check()
		switch {
		case err != nil:
		case l.DeviceID != deviceID:
			err = fmt.Errorf("it is of %s", l.DeviceID)
		case known[l.ID]:
			err = fmt.Errorf("%s is there twice", l.ID)
		}
		if err != nil {
			return 0, ErrLine.WithField(fmt.Sprintf("lines[%d]", i), "line.possible", err.Error())
		}
		known[l.ID] = true
	}
	return s.store.PutLines(ctx, deviceID, lines, s.moment(), s.Takedown)
}
