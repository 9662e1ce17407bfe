package order

import (
	"errors"
	"strings"

	"github.com/marquee-ads/marquee/platform/fault"
)

// Command is what is done to an order.
type Command string

// What is done to orders.
const (
	// Book pays for it.
	Book Command = "BOOK"
	// Cancel gives back what is left of it.
	Cancel Command = "CANCEL"
	// Expire is the end of its hold.
	Expire Command = "EXPIRE"
	// Settle divides its price by what was played, when its flights are over.
	Settle Command = "SETTLE"
	// SetCreative says what it shows.
	SetCreative Command = "SET_CREATIVE"
)

// What callers are told that do what an order's state does not allow.
var (
	ErrState       = fault.New(fault.FailedPrecondition, "ORDER_STATE", "the order's state does not allow this")
	ErrHoldExpired = fault.New(fault.FailedPrecondition, "HOLD_EXPIRED", "the hold has expired: hold the air time again")
)

// outcome is the state that a command leads to, or why it does not.
type outcome struct {
	next    State
	refused *fault.Error
}

func to(next State) outcome { return outcome{next: next} }

var (
	stateRefuses = outcome{refused: ErrState}
	holdRefuses  = outcome{refused: ErrHoldExpired}
)

// machine says what each command makes of an order in each state. Nothing else
// decides that.
var machine = map[State]map[Command]outcome{
	Held:      {Book: to(Booked), Cancel: to(Cancelled), Expire: to(Expired), Settle: stateRefuses, SetCreative: to(Held)},
	Expired:   {Book: holdRefuses, Cancel: stateRefuses, Expire: stateRefuses, Settle: stateRefuses, SetCreative: stateRefuses},
	Booked:    {Book: stateRefuses, Cancel: to(Cancelled), Expire: stateRefuses, Settle: to(Completed), SetCreative: to(Booked)},
	Cancelled: {Book: stateRefuses, Cancel: stateRefuses, Expire: stateRefuses, Settle: stateRefuses, SetCreative: stateRefuses},
	Completed: {Book: stateRefuses, Cancel: stateRefuses, Expire: stateRefuses, Settle: stateRefuses, SetCreative: stateRefuses},
}

// After is the state that a command leads to. Errors: ErrState with what the state
// is, ErrHoldExpired.
func (s State) After(c Command) (State, error) {
	o, known := machine[s][c]
	switch {
	case known && o.refused == nil:
		return o.next, nil
	case known && !errors.Is(o.refused, ErrState):
		return "", o.refused
	default:
		return "", StateFault(s)
	}
}

// StateFault is ErrState with what the state is.
func StateFault(s State) *fault.Error {
	e := *ErrState
	e.Message = "the order is " + strings.ToLower(string(s))
	return &e
}
