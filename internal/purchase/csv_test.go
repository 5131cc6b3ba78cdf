package purchase

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"steward/internal/device"
	"steward/internal/fault"
)

func TestDeliveryFileIsReadInAnyColumnOrderWithBOMAndCRLF(t *testing.T) {
	text := "\xef\xbb\xbfModel, Serial ,note,MAC,line\r\ngw-1,SN-1,\"a \"\"quoted\"\"\r\nnote\",00-11-22-33-44-55,2\r\n\r\ngw-1, SN-2 ,,,\r\n"
	f, err := ReadFile(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []Row{
		{FileLine: 2, Serial: "SN-1", Model: "gw-1", Line: 2, MAC: "00:11:22:33:44:55", Note: "a \"quoted\"\nnote"},
		{FileLine: 5, Serial: "SN-2", Model: "gw-1"},
	}
	if fmt.Sprint(f.Rows) != fmt.Sprint(want) {
		t.Errorf("rows\n%+v\nwant\n%+v", f.Rows, want)
	}
	if len(f.SHA256) != 64 {
		t.Errorf("hash %q", f.SHA256)
	}
}

func TestBadCellIsNamedByLineAndColumn(t *testing.T) {
	for _, tt := range []struct{ name, text, location, message string }{
		{"empty file", "", "line 1, column 1", "empty"},
		{"only a header", "serial,model\n", "line 2, column 1", "no row"},
		{"column missing", "serial,line\nA,1\n", "line 1, column 3", "model is missing"},
		{"unknown column", "serial,model,colour\nA,m,red\n", "line 1, column 3", "unknown column"},
		{"column twice", "serial,model,Serial\nA,m,A\n", "line 1, column 3", "twice"},
		{"semicolons", "serial;model\nA;m\n", "line 1, column 1", "not separated by commas"},
		{"serial missing", "serial,model\nA1,m\n,m\n", "line 3, column 1", "serial number"},
		{"serial with blank", "serial,model\nA 1,m\n", "line 2, column 1", "serial number"},
		{"serial too long", "serial,model\n" + strings.Repeat("A", 65) + ",m\n", "line 2, column 1", "serial number"},
		{"model missing", "model,serial\n,A1\n", "line 2, column 1", "model is missing"},
		{"too few cells", "serial,model,note\nA1,m\n", "line 2, column 3", "2 cells"},
		{"too many cells", "serial,model\nA1,m,x\n", "line 2, column 3", "3 cells"},
		{"order line no number", "serial,model,line\nA1,m,first\n", "line 2, column 3", "no order line"},
		{"order line zero", "serial,model,line\nA1,m,0\n", "line 2, column 3", "no order line"},
		{"wrong address", "serial,model,mac\nA1,m,00:11\n", "line 2, column 3", "no hardware address"},
		{"bare quote", "serial,model\nA1,m\nB\"2,m\n", "line 3, column 1", "quote"},
		{"text after quote", "serial,model,note\nA1,m,\"x\"y\n", "line 2, column 3", "quote"},
		{"quote never closed", "serial,model,note\nA1,m,\"x\nB2,m,y\n", "line 2, column 3", "quote"},
		{"not UTF-8", "serial,model,note\nA1,m,M\xfcller\n", "line 2, column 3", "UTF-8"},
		{"control character", "serial,model,note\nA1,m,a\x00b\n", "line 2, column 3", "control"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ReadFile(strings.NewReader(tt.text))
			var bad *fault.Invalid
			if !errors.As(err, &bad) {
				t.Fatalf("error %v, want Invalid", err)
			}
			if got := bad.Fields[0]; got.Location != tt.location || !strings.Contains(got.Message, tt.message) {
				t.Errorf("%s: %s; want %s: …%s…", got.Location, got.Message, tt.location, tt.message)
			}
		})
	}
}

func TestAllBadRowsAreCollectedUpToTheBound(t *testing.T) {
	text := "serial,model\nGOOD,m\n" + strings.Repeat(",m\n", 3) + "B\"AD,m\nGOOD2,m\n,\n"
	_, err := ReadFile(strings.NewReader(text))
	var bad *fault.Invalid
	if !errors.As(err, &bad) || len(bad.Fields) != 6 {
		t.Errorf("%v: want 6 problems: lines 3 to 6 and both cells of line 8", err)
	}
	_, err = ReadFile(strings.NewReader("serial,model\n" + strings.Repeat(",m\n", 500)))
	if !errors.As(err, &bad) || len(bad.Fields) != maxProblems {
		t.Errorf("%d problems, want %d", len(bad.Fields), maxProblems)
	}
}

func TestOversizedFileIsRefused(t *testing.T) {
	row := "A,m," + strings.Repeat("x", 400) + "\n"
	big := "serial,model,note\n" + strings.Repeat(row, MaxFileBytes/len(row)+2)
	if _, err := ReadFile(strings.NewReader(big)); !errors.Is(err, fault.TooLarge) {
		t.Errorf("file of %d bytes: %v", len(big), err)
	}
	var many bytes.Buffer
	many.WriteString("serial,model\n")
	for i := range MaxFileRows + 1 {
		fmt.Fprintf(&many, "S%d,m\n", i)
	}
	if _, err := ReadFile(&many); !errors.Is(err, fault.TooLarge) {
		t.Errorf("file of too many rows: %v", err)
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

func TestBrokenUploadIsNotTakenForAFile(t *testing.T) {
	_, err := ReadFile(brokenReader{})
	if err == nil || errors.Is(err, fault.Unprocessable) || !strings.Contains(err.Error(), "connection reset") {
		t.Errorf("error %v", err)
	}
}

func FuzzReadFile(f *testing.F) {
	for _, seed := range []string{
		"serial,model\nA1,m\n", "\xef\xbb\xbfserial,model,line,mac,note\r\nA1,m,1,00:11:22:33:44:55,\"x\ny\"\r\n",
		"serial,model\n\"A1\"\",m\n", "serial;model\n", "serial,model\n\"", "\n\n", "serial,model\nA\x00,m",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := ReadFile(bytes.NewReader(data))
		if err != nil {
			var bad *fault.Invalid
			if errors.As(err, &bad) && (len(bad.Fields) == 0 || len(bad.Fields) > maxProblems+len(columns)) {
				t.Errorf("%d problems", len(bad.Fields))
			}
			return
		}
		if len(file.Rows) == 0 {
			t.Error("no row and no error")
		}
		for _, r := range file.Rows {
			if serial, err := device.ParseSerial(r.Serial); err != nil || serial != r.Serial || r.Model == "" || r.FileLine < 2 ||
				r.Line < 0 || r.Line > MaxLines || !utf8.ValidString(r.Note) || len(r.Note) > maxCellBytes {
				t.Errorf("row %+v", r)
			}
		}
	})
}
