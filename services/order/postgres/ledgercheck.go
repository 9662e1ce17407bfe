package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/marquee-ads/marquee/services/order/postgres/query"
)

const (
	// maxFindings bounds what is said of one kind.
	maxFindings = 100
	// checkStatement is how long one query of a check may take: it reads whole tables.
	checkStatement = "SET LOCAL statement_timeout = '2min'"
)

// CheckLedger implements order.LedgerStore.
func (s *Store) CheckLedger(ctx context.Context) (findings []string, err error) {
	// One snapshot for all of it: what is under way is there as a whole or not at all.
	options := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err = pgx.BeginTxFunc(ctx, s.db.Pool(), options, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, checkStatement); err != nil {
			return fmt.Errorf("preparing: %w", err)
		}
		q := s.q.WithTx(tx)
		for _, check := range []func(context.Context, *query.Queries) ([]string, error){
			checkSums, checkBalances, checkPayments, checkKept, checkRefunds, checkEarnings, checkBookings, checkReservations, checkDoubleSales,
		} {
			found, err := check(ctx, q)
			if err != nil {
				return err
			}
			if len(found) == maxFindings {
				found = append(found, fmt.Sprintf("and more like the last %d", maxFindings))
			}
			findings = append(findings, found...)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("checking the ledger: %w", err)
	}
	return findings, nil
}

// words turns what a query found into findings.
func words[R any](rows []R, err error, say func(R) string) ([]string, error) {
	if err != nil {
		return nil, err
	}
	var findings []string
	for _, row := range rows {
		findings = append(findings, say(row))
	}
	return findings, nil
}

func checkSums(ctx context.Context, q *query.Queries) ([]string, error) {
	rows, err := q.CheckSums(ctx, maxFindings)
	return words(rows, err, func(r query.CheckSumsRow) string {
		return fmt.Sprintf("all accounts in %s sum to %s minor units and not to 0", r.Currency, r.SumMinor)
	})
}

func checkBalances(ctx context.Context, q *query.Queries) ([]string, error) {
	rows, err := q.CheckBalances(ctx, maxFindings)
	return words(rows, err, func(r query.CheckBalancesRow) string {
		if !r.There {
			return fmt.Sprintf("entries of %s minor units belong to the account %s, which there is not in their currency", r.MovedMinor, r.AccountID)
		}
		return fmt.Sprintf("account %s has %d minor units, and its entries sum to %s", r.AccountID, r.BalanceMinor, r.MovedMinor)
	})
}

func checkPayments(ctx context.Context, q *query.Queries) ([]string, error) {
	rows, err := q.CheckPayments(ctx, maxFindings)
	return words(rows, err, func(r query.CheckPaymentsRow) string {
		if !r.Booked {
			return fmt.Sprintf("order %s was never booked, and has %d payments of %s minor units", r.OrderID, r.Payments, r.PaidMinor)
		}
		return fmt.Sprintf("order %s was booked for %d minor units of %s, and is not paid once with that from the wallet of who booked it: it has %d payments of %s minor units",
			r.OrderID, r.PriceMinor, r.Currency, r.Payments, r.PaidMinor)
	})
}

func checkKept(ctx context.Context, q *query.Queries) ([]string, error) {
	rows, err := q.CheckKept(ctx, maxFindings)
	return words(rows, err, func(r query.CheckKeptRow) string {
		switch r.State {
		case "":
			return fmt.Sprintf("account %s is of an order that there is not", r.AccountID)
		case "BOOKED":
			return fmt.Sprintf("account %s has %d minor units of %s, and its order is booked for %d", r.AccountID, r.BalanceMinor, r.Currency, r.PriceMinor)
		default:
			return fmt.Sprintf("account %s has %d minor units of %s, and nothing is kept for its order, which is %s", r.AccountID, r.BalanceMinor, r.Currency, r.State)
		}
	})
}

func checkRefunds(ctx context.Context, q *query.Queries) ([]string, error) {
	rows, err := q.CheckRefunds(ctx, maxFindings)
	return words(rows, err, func(r query.CheckRefundsRow) string {
		return fmt.Sprintf("order %s says that %d minor units came back; of its lines %s did, and by its entries %s", r.OrderID, r.RefundedMinor, r.LinesMinor, r.EntriesMinor)
	})
}

func checkEarnings(ctx context.Context, q *query.Queries) ([]string, error) {
	rows, err := q.CheckEarnings(ctx, maxFindings)
	return words(rows, err, func(r query.CheckEarningsRow) string {
		return fmt.Sprintf("line %s says that %d minor units were earned, and its entries sum to %s", r.LineID, r.EarnedMinor, r.EntriesMinor)
	})
}

func checkBookings(ctx context.Context, q *query.Queries) ([]string, error) {
	rows, err := q.CheckBookings(ctx, maxFindings)
	return words(rows, err, func(r query.CheckBookingsRow) string {
		switch {
		case !r.Reserved:
			return fmt.Sprintf("line %s is booked, and its slot %d is not reserved", r.LineID, r.Slot)
		case r.Expires:
			return fmt.Sprintf("line %s is booked, and the reservation of its slot %d expires", r.LineID, r.Slot)
		default:
			return fmt.Sprintf("line %s is booked, and its slot %d is not reserved at all of its times", r.LineID, r.Slot)
		}
	})
}

func checkReservations(ctx context.Context, q *query.Queries) ([]string, error) {
	rows, err := q.CheckReservations(ctx, maxFindings)
	return words(rows, err, func(r query.CheckReservationsRow) string {
		if r.OrderID == "" {
			return fmt.Sprintf("place %s is reserved for line %s, which there is not", r.Place, r.LineID)
		}
		return fmt.Sprintf("place %s is reserved for line %s, and is not what its order %s has, which is %s", r.Place, r.LineID, r.OrderID, r.State)
	})
}
