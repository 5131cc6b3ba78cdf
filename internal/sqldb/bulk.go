package sqldb

import (
	"strconv"
)

// Among returns a condition with one "?" that the column is one of the numbers, and its argument. The
// text is the same for any count of numbers, so that its compiled form is used again.
func (d Dialect) Among(column string, nums []int64) (condition string, arg any) {
	if d == Postgres {
		if nums == nil {
			nums = []int64{} // nil would be NULL, of which nothing is a part
		}
		return column + " = ANY(CAST(? AS BIGINT[]))", nums
	}
	list := make([]byte, 0, 2+8*len(nums))
	list = append(list, '[')
	for i, n := range nums {
		if i > 0 {
			list = append(list, ',')
		}
		list = strconv.AppendInt(list, n, 10)
	}
	return column + " IN (SELECT value FROM json_each(?))", string(append(list, ']'))
}
