export declare function naive(text: string): unknown;
/** Returns a function that makes up JSON. The same seed makes up the same. */
export declare function randomText(seed: number, keys: string[]): () => string;
