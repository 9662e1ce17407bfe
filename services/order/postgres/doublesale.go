package postgres

import (
	"context"
	"fmt"

	"github.com/marquee-ads/marquee/services/order/postgres/query"
)

// checkDoubleSales does not take the constraint's word for it.
func checkDoubleSales(ctx context.Context, q *query.Queries) ([]string, error) {
	rows, err := q.CheckDoubleSales(ctx, maxFindings)
	return words(rows, err, func(r query.CheckDoubleSalesRow) string {
		return fmt.Sprintf("place %s is sold twice at one time: to line %s and line %s", r.Place, r.LineID, r.OtherLineID)
	})
}
