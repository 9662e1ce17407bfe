// Package order sells air time on displays: what is free, what is held and booked,
// what is shown in it, and the money for it.
package order

import (
	"time"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/platform/fault"
)

const (
	// RequestLifetime is for how long repeats of a request get the first answer.
	RequestLifetime = 24 * time.Hour
	// MaxHolds bounds the orders that an organisation holds at a time.
	MaxHolds = 50
	// DefaultHold is how long a hold lasts when nobody says.
	DefaultHold = 10 * time.Minute
	// MaxFlight bounds a flight, in days.
	MaxFlight = 366
	// MaxAhead is how long before its first day a flight can be held.
	MaxAhead = 2 * 366 * 24 * time.Hour
	// MaxAmount bounds what an order costs, in minor units.
	MaxAmount = 1_000_000_000_000
	// MaxSlots is how many slots a loop has at most.
	MaxSlots = 3600
)

// Money is an amount in the currency's minor unit.
type Money struct {
	Minor    int64
	Currency string // ISO 4217
}

// State is where an order is in its life.
type State string

// What orders are.
const (
	Held      State = "HELD"
	Expired   State = "EXPIRED"
	Booked    State = "BOOKED"
	Cancelled State = "CANCELLED"
	Completed State = "COMPLETED"
)

// Order is air time that belongs together.
type Order struct {
	// ID is "ord_" and a ULID.
	ID             string
	OrganisationID string
	Title          string
	State          State
	Price          Money
	RefundedMinor  int64
	Lines          []Line // in lists without
	LineCount      int
	CreateTime     time.Time
	HoldExpireTime time.Time
	BookTime       time.Time // zero before
	CancelTime     time.Time // zero before
	// EndTime is when the last line ends.
	EndTime time.Time
}

// Line is air time on one display.
type Line struct {
	// ID is "lin_" and a ULID.
	ID       string
	OrderID  string
	Number   int // its place in the order, from 0
	DeviceID string
	// OwnerID is the organisation whose display it is.
	OwnerID  string
	Flight   airtime.Flight
	Dayparts []airtime.Opening // all of the flight without any
	// Slots are positions of the loop, from 0, ascending.
	Slots      []int
	LoopLength time.Duration
	SlotLength time.Duration
	TimeZone   string
	// Times are when it is on, in order and apart from each other. Only of a line that
	// was cancelled before it began there are none.
	Times         []airtime.Range
	Plays         int64
	PriceMinor    int64
	RefundedMinor int64
	// EarnedMinor is what the display's owner has got.
	EarnedMinor int64
	// Booked says that it was paid for.
	Booked     bool
	CreativeID string // empty while nobody has said what it shows
	// ShownVersion is the version of the creative that is shown; 0 is none.
	ShownVersion int
	// ShowingNumber grows with each change of what is shown.
	ShowingNumber int
	// Revision grows with each change that the display is told of.
	Revision int64
}

// Start is when the line is on first; zero when it never is.
func (l Line) Start() time.Time {
	if len(l.Times) == 0 {
		return time.Time{}
	}
	return l.Times[0].From
}

// End is when the line is on no more; zero when it never is.
func (l Line) End() time.Time {
	if len(l.Times) == 0 {
		return time.Time{}
	}
	return l.Times[len(l.Times)-1].Until
}

// Display is what air time is sold on, as the device service told of it.
type Display struct {
	DeviceID string
	// Number is short for DeviceID.
	Number         int64
	OrganisationID string
	Name           string
	Latitude       float64
	Longitude      float64
	Address        string
	VenueType      string // OpenOOH venue taxonomy 1.1
	WidthPX        int
	HeightPX       int
	LoopLength     time.Duration
	SlotLength     time.Duration
	SlotPrice      Money // of one play of one slot
	TimeZone       string
	Hours          []airtime.Opening // always on without any
	// Revision grows with each change of the settings.
	Revision int64
	// Playable says that a player has credentials for it.
	Playable bool
}

// Slots is how many a loop has.
func (d Display) Slots() int { return int(d.LoopLength / d.SlotLength) }

// What callers are told. Rules of single fields are checked before, by those in the
// .proto.
var (
	ErrNotFound        = fault.New(fault.NotFound, "ORDER_NOT_FOUND", "the organisation has no such order")
	ErrRequestIDReused = fault.New(fault.Aborted, "REQUEST_ID_REUSED", "this request_id came before with another body: choose a new one").
				WithField("request_id", "unique", "came before with another body")
)
