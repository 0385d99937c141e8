// Which types must a dashboard's JSON have? Those of @grafana/schema, as far as they go: of the dashboard, its variables,
// annotations and links, and of each kind of panel its options and its fields' settings. Queries have no types there.
import type * as grafana from "@grafana/schema";
import type * as bargauge from "@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen";
import type * as stat from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type * as table from "@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen";
import type * as text from "@grafana/schema/dist/esm/raw/composable/text/panelcfg/x/TextPanelCfg_types.gen";
import type * as timeseries from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";

/** The same as JSON: an enumeration of words is the words themselves. */
type Json<T> = unknown extends T
  ? unknown
  : T extends string
    ? `${T}`
    : T extends number | boolean | null | undefined
      ? T
      : T extends readonly (infer Element)[]
        ? Json<Element>[]
        : { [Key in keyof T]: Json<T[Key]> };

type Kind<Name extends string, Options, Field = Record<never, never>> = Json<
  Omit<grafana.Panel, "options" | "fieldConfig" | "type">
> & {
  type: Name;
  options?: Json<Options>;
  fieldConfig?: Json<
    Omit<grafana.FieldConfigSource, "defaults"> & {
      defaults: Omit<grafana.FieldConfig, "custom"> & { custom?: Partial<Field> };
    }
  >;
};

export interface Kinds {
  bargauge: Kind<"bargauge", bargauge.Options>;
  row: Omit<Json<grafana.RowPanel>, "panels"> & { panels: Kinds[Exclude<keyof Kinds, "row">][] };
  stat: Kind<"stat", stat.Options>;
  table: Kind<"table", table.Options, table.FieldConfig>;
  text: Kind<"text", text.Options>;
  timeseries: Kind<"timeseries", timeseries.Options, timeseries.FieldConfig>;
  // The panel of a trace has no types of its own.
  traces: Kind<"traces", Record<string, never>>;
}

/** What a query of Prometheus says; the types know what is common to all queries only. */
type Query = grafana.DataQuery & { expr: string; interval?: string };

/** Beside its target an annotation has its query as Grafana 11 reads it, which the types no longer know. */
type Annotation = Json<grafana.AnnotationQuery<Query>> & {
  expr: string;
  step: string;
  tagKeys: string;
  textFormat: string;
  titleFormat: string;
};

export type Dashboard = Omit<Json<grafana.Dashboard>, "annotations" | "panels"> & {
  annotations: { list?: Annotation[] };
  panels: Kinds[keyof Kinds][];
};
