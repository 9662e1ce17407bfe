// Package device is the displays of organisations: how their players get in,
// what they play, and what they have played.
package device

import (
	"slices"
	"time"
	"unicode/utf8"

	"golang.org/x/text/currency"
	"golang.org/x/text/secure/precis"

	"github.com/marquee-ads/marquee/platform/airtime"
	"github.com/marquee-ads/marquee/platform/fault"
)

const (
	// MaxDevices bounds how many devices an organisation has.
	MaxDevices = 10_000
	// RequestLifetime is for how long repeats of a request get the first answer.
	RequestLifetime = 24 * time.Hour

	maxName = 100
)

// Device is a display with its player.
type Device struct {
	// ID is "dev_" and a ULID; also the user name of its player.
	ID             string
	OrganisationID string
	Settings       Settings
	State          State
	Presence       Presence
	// Revision grows with each change of the settings.
	Revision   int64
	CreateTime time.Time
	UpdateTime time.Time
	// ClaimTime is when a player last got credentials; zero before.
	ClaimTime time.Time
}

// Settings are what an operator says of a device.
type Settings struct {
	Name      string
	Place     Place
	VenueType string // OpenOOH venue taxonomy 1.1
	Screen    Screen
	// LoopLength is that of the repeating cycle, a whole number of slots.
	LoopLength time.Duration
	SlotLength time.Duration
	// SlotPrice is that of one play of one slot.
	SlotPrice Price
	TimeZone  string // IANA
	// Hours are when it is on, in its time zone, sorted; always without any.
	Hours []airtime.Opening
}

// Place is where a display stands: degrees, WGS 84.
type Place struct {
	Latitude, Longitude float64
	Address             string
}

// Screen is the size of what is seen, in pixels.
type Screen struct {
	Width, Height int
}

// Price is an amount of money in the currency's minor unit.
type Price struct {
	AmountMinor int64
	Currency    string // ISO 4217
}

// State is whether a player can connect as the device.
type State string

// What devices are.
const (
	Unclaimed State = "UNCLAIMED"
	Claimed   State = "CLAIMED"
	Revoked   State = "REVOKED"
)

// Presence is whether the player is connected.
type Presence struct {
	Online bool
	// Since when it is so; zero for a device that was never connected.
	Since time.Time
}

// What callers are told. Rules of single fields are checked before, by those in
// the .proto.
var (
	ErrNotFound        = fault.New(fault.NotFound, "DEVICE_NOT_FOUND", "the organisation has no such device")
	ErrRequestIDReused = fault.New(fault.Aborted, "REQUEST_ID_REUSED", "this request_id came before with another body: choose a new one").
				WithField("request_id", "unique", "came before with another body")
	ErrTooManyDevices = fault.New(fault.FailedPrecondition, "TOO_MANY_DEVICES", "the organisation has %d devices: delete one first", MaxDevices)
	ErrChanged        = fault.New(fault.Aborted, "DEVICE_CHANGED", "the device was changed by somebody else: read it again")
	ErrNotClaimed     = fault.New(fault.FailedPrecondition, "DEVICE_NOT_CLAIMED", "the device has no credentials: make a claim code for its player")
	ErrSettings       = fault.New(fault.InvalidArgument, "VALIDATION_FAILED", "the device's settings are not possible")
	ErrArea           = fault.New(fault.InvalidArgument, "VALIDATION_FAILED", "the area is not possible").
				WithField("area.north", "area.order", "is south of area.south")
)

// cleaned are the settings as they are stored, or an error that names what is not
// possible about them. Errors: ErrSettings.
func (s Settings) cleaned() (Settings, error) {
	name, ok := cleanName(s.Name)
	if !ok {
		return Settings{}, ErrSettings.WithField("settings.name", "name.characters", "is empty, longer than 100 characters, or holds control or invisible characters")
	}
	s.Name = name
	if !VenueType(s.VenueType) {
		return Settings{}, ErrSettings.WithField("settings.venue_type", "venue_type.known", "is no venue type of the OpenOOH taxonomy 1.1, such as transit.airports.gates")
	}
	if s.LoopLength%s.SlotLength != 0 {
		return Settings{}, ErrSettings.WithField("settings.loop_length_seconds", "loop.slots", "is not a whole number of slots")
	}
	if _, err := currency.ParseISO(s.SlotPrice.Currency); err != nil {
		return Settings{}, ErrSettings.WithField("settings.slot_price.currency", "currency.known", "is no currency of ISO 4217")
	}
	// LoadLocation takes "Local" for this machine's.
	if _, err := time.LoadLocation(s.TimeZone); err != nil || s.TimeZone == "Local" || s.TimeZone == "" {
		return Settings{}, ErrSettings.WithField("settings.time_zone", "time_zone.known", "is no IANA time zone, such as Europe/Berlin")
	}
	s.Hours = airtime.Sorted(s.Hours)
	for i, h := range s.Hours {
		if h.Close <= h.Open {
			return Settings{}, ErrSettings.WithField("settings.hours", "hours.order", "close before they open")
		}
		if i > 0 && s.Hours[i-1].Weekday == h.Weekday && s.Hours[i-1].Close > h.Open {
			return Settings{}, ErrSettings.WithField("settings.hours", "hours.overlap", "overlap on one weekday")
		}
	}
	return s, nil
}

// cleanName is a name as it is stored; not ok is one that is none.
func cleanName(text string) (name string, ok bool) {
	name, err := precis.Nickname.String(text)
	n := utf8.RuneCountInString(name)
	return name, err == nil && n >= 1 && n <= maxName
}

// Equal says whether two settings are the same.
func (s Settings) Equal(o Settings) bool {
	hours := slices.Equal(s.Hours, o.Hours)
	return hours && s.Name == o.Name && s.Place == o.Place && s.VenueType == o.VenueType && s.Screen == o.Screen &&
		s.LoopLength == o.LoopLength && s.SlotLength == o.SlotLength && s.SlotPrice == o.SlotPrice && s.TimeZone == o.TimeZone
}
