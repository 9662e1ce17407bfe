// Package query is the SQL of the order service, one file a table, and the Go
// code that sqlc makes of it.
package query
