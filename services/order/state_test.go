package order_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/services/order"
)

// TestStates goes over every pair of a state and a command. The table is written
// here as documents draw it, and not as the code does.
func TestStates(t *testing.T) {
	const table = `
		          BOOK          CANCEL     EXPIRE   SETTLE     SET_CREATIVE
		HELD      BOOKED        CANCELLED  EXPIRED  -          HELD
		EXPIRED   HOLD_EXPIRED  -          -        -          -
		BOOKED    -             CANCELLED  -        COMPLETED  BOOKED
		CANCELLED -             -          -        -          -
		COMPLETED -             -          -        -          -`
	rows := strings.Split(strings.TrimSpace(table), "\n")
	commands := strings.Fields(rows[0])
	require.Equal(t, []string{
		string(order.Book), string(order.Cancel), string(order.Expire), string(order.Settle), string(order.SetCreative),
	}, commands)
	seen := map[string]bool{}
	for _, row := range rows[1:] {
		cells := strings.Fields(row)
		state := order.State(cells[0])
		seen[cells[0]] = true
		require.Len(t, cells, 1+len(commands))
		for i, want := range cells[1:] {
			t.Run(cells[0]+"/"+commands[i], func(t *testing.T) {
				next, err := state.After(order.Command(commands[i]))
				switch want {
				case "-":
					require.ErrorIs(t, err, order.ErrState)
					require.Contains(t, err.Error(), "the order is "+strings.ToLower(cells[0]))
					require.Empty(t, next)
				case "HOLD_EXPIRED":
					require.ErrorIs(t, err, order.ErrHoldExpired)
					require.Empty(t, next)
				default:
					require.NoError(t, err)
					require.Equal(t, order.State(want), next)
				}
			})
		}
	}
	for _, s := range []order.State{order.Held, order.Expired, order.Booked, order.Cancelled, order.Completed} {
		require.True(t, seen[string(s)], "the table has no %s", s)
	}
	_, err := order.State("LOST").After(order.Book)
	require.ErrorIs(t, err, order.ErrState)
	_, err = order.Held.After("EAT")
	require.ErrorIs(t, err, order.ErrState)
}
