package cli

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"

	"github.com/spf13/cobra"

	"steward/internal/client"
)

func (a *app) orderCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "order", Short: "Purchase orders, deliveries and stock"}
	cmd.AddCommand(a.orderPlaceCommand(), a.orderReceiveCommand(), a.orderDecideCommand(), a.orderCancelCommand(), a.orderCloseCommand(), a.stockCommand())
	return cmd
}

func (a *app) orderPlaceCommand() *cobra.Command {
	return &cobra.Command{
		Use: "place ORDER", Short: "Place a draft: its units become devices in stage ordered", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			var order client.Object
			path := "/orders/" + escapePath(argv[0])
			if err := c.Do(cmd.Context(), client.Call{Method: http.MethodPost, Path: path + "/place", Header: soon}, &order); err != nil {
				return err
			}
			if order, err = a.await(cmd, c, path, order, orderProgress); err != nil {
				return err
			}
			return p.say(order, "order %v placed", order["number"])
		},
	}
}

// maxDeliveryBytes is what the server accepts as a delivery file.
const maxDeliveryBytes = 16 << 20

func (a *app) orderReceiveCommand() *cobra.Command {
	var file, note string
	var preview bool
	cmd := &cobra.Command{
		Use:   "receive ORDER --csv FILE",
		Short: "Check a delivery against its order and book it",
		Long: `receive reads the supplier's list of serial numbers (CSV with a header: serial, model, and if you like
line, mac, note), shows what fits and what doesn't, asks, and books what fits. What is too much, twice or of
a wrong model is kept as a discrepancy for you to decide (steward order decide); nothing is guessed.
A file with a wrong cell imports nothing; each wrong cell is named by line and column.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			data, err := readDelivery(cmd.InOrStdin(), file)
			if err != nil {
				return err
			}
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			send := func(mode string, out any) error {
				return c.Do(cmd.Context(), client.Call{
					Method: http.MethodPost, Path: "/orders/" + escapePath(argv[0]) + "/deliveries", Type: "text/csv",
					Body: io.Reader(bytes.NewReader(data)), Query: url.Values{"mode": {mode}, "note": {note}}, Header: soon,
				}, out)
			}
			var check client.Object
			if err := send("preview", &check); err != nil {
				return err
			}
			if preview {
				return p.value(check["check"])
			}
			if !a.yes {
				sum, _ := check["check"].(map[string]any)
				question := fmt.Sprintf("%v rows: %d fit, %d don't, %d lines short. Book it?", sum["rows"], length(sum["matched"]), length(sum["discrepancies"]), length(sum["short"]))
				if err := a.confirm(cmd, question); err != nil {
					return err
				}
			}
			var booked client.Object
			if err := send("book", &booked); err != nil {
				return err
			}
			done, _ := booked["booked"].(map[string]any)
			if again, _ := done["repeated"].(bool); again {
				return p.say(booked, "this file was booked before, as delivery %v: nothing was done", lookup(done, "delivery.id"))
			}
			order, _ := done["order"].(map[string]any)
			if done["order"], err = a.await(cmd, c, "/orders/"+escapePath(argv[0]), order, orderProgress); err != nil {
				return err
			}
			return p.say(booked, "booked as delivery %v", lookup(done, "delivery.id"))
		},
	}
	cmd.Flags().StringVar(&file, "csv", "", "the supplier's file ('-' reads standard input; required)")
	cmd.Flags().StringVar(&note, "note", "", "number of the delivery note")
	cmd.Flags().BoolVar(&preview, "dry-run", false, "only show what booking would do")
	return cmd
}

func length(v any) int {
	list, _ := v.([]any)
	return len(list)
}

func readDelivery(stdin io.Reader, file string) ([]byte, error) {
	if file == "" {
		return nil, usagef("give the supplier's file with --csv FILE")
	}
	in := stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxDeliveryBytes+1))
	if err == nil && len(data) > maxDeliveryBytes {
		return nil, usagef("%s is larger than %d MiB", file, maxDeliveryBytes>>20)
	}
	return data, err
}

func (a *app) orderDecideCommand() *cobra.Command {
	var kind, action, note string
	var lines []int
	var orderLine int
	cmd := &cobra.Command{
		Use:   "decide DELIVERY --action accept|return|reject (--kind KIND | --file-lines N,…)",
		Short: "Decide what happens with delivered units that did not fit (see get discrepancies)",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			body := client.Object{"action": action}
			if kind != "" {
				body["kind"] = kind
			}
			if len(lines) > 0 {
				body["file_lines"] = lines
			}
			if orderLine > 0 {
				body["line"] = orderLine
			}
			if note != "" {
				body["note"] = note
			}
			var out struct {
				Items []client.Object `json:"items"`
			}
			err = c.Do(cmd.Context(), client.Call{Method: http.MethodPost, Path: "/deliveries/" + escapePath(argv[0]) + "/decisions", Body: body}, &out)
			if err != nil {
				return err
			}
			return p.say(out.Items, "%d decided", len(out.Items))
		},
	}
	f := cmd.Flags()
	f.StringVar(&action, "action", "", "accept, return or reject (required)")
	f.StringVar(&kind, "kind", "", "all undecided ones of this kind: over, wrong_model, unknown_model, ambiguous, twice, known_serial")
	f.IntSliceVar(&lines, "file-lines", nil, "lines of the supplier's file")
	f.IntVar(&orderLine, "line", 0, "order line to accept on")
	f.StringVar(&note, "note", "", "why")
	_ = cmd.MarkFlagRequired("action")
	return cmd
}

func (a *app) orderCancelCommand() *cobra.Command {
	var line int
	var reason string
	cmd := &cobra.Command{
		Use: "cancel ORDER --reason TEXT", Short: "Cancel what is still open of an order, or one line of it", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			path := "/orders/" + escapePath(argv[0]) + "/cancel"
			var preview client.Object
			if err := c.Do(cmd.Context(), client.Call{Path: path, Query: url.Values{"line": {fmt.Sprint(line)}}}, &preview); err != nil {
				return err
			}
			if err := a.confirm(cmd, fmt.Sprintf("Cancel %v open units (their devices go to retired)?", preview["units"])); err != nil {
				return err
			}
			var order client.Object
			err = c.Do(cmd.Context(), client.Call{Method: http.MethodPost, Path: path, Body: client.Object{"line": line, "reason": reason}, Header: soon}, &order)
			if err != nil {
				return err
			}
			if order, err = a.await(cmd, c, "/orders/"+escapePath(argv[0]), order, orderProgress); err != nil {
				return err
			}
			return p.say(order, "cancelled; the order is %v", order["state"])
		},
	}
	cmd.Flags().IntVar(&line, "line", 0, "only this line")
	cmd.Flags().StringVar(&reason, "reason", "", "why (required)")
	_ = cmd.MarkFlagRequired("reason")
	return cmd
}

func (a *app) orderCloseCommand() *cobra.Command {
	return &cobra.Command{
		Use: "close ORDER", Short: "Close a received order", Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			var order client.Object
			if err := c.Do(cmd.Context(), client.Call{Method: http.MethodPost, Path: "/orders/" + escapePath(argv[0]) + "/close"}, &order); err != nil {
				return err
			}
			return p.say(order, "order %v closed", order["number"])
		},
	}
}

func (a *app) stockCommand() *cobra.Command {
	return &cobra.Command{
		Use: "stock", Short: "Count received devices by model and order", Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			var out struct {
				Items []client.Object `json:"items"`
			}
			if err := c.Do(cmd.Context(), client.Call{Path: "/stock"}, &out); err != nil {
				return err
			}
			return p.list(out.Items, []column{{"MODEL", "model"}, {"ORDER", "number"}, {"UNITS", "units"}, {"WARRANTY ENDS", "warranty_end"}, {"VALUE", "value|money"}, {"CURRENCY", "currency"}})
		},
	}
}
