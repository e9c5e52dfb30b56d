//! One draw of an operation: where its values come from, and how two results are compared. Tests compare the CPU and
//! the simulated GPU with the reference; `smelt bench gpu` compares a GPU with it.

use smelt_kernels::*;

/// Units of rounding that the norm of a difference may have (see `main.rs`).
pub(crate) const ROUNDINGS: f64 = 64.0;

/// Where the values of one draw come from, and what an operation made of them.
pub(crate) struct Trial<'a> {
    pub(crate) device: &'a dyn Backend,
    pub(crate) dtype: DType,
    pub(crate) seed: u64,
    pub(crate) drawn: u64,
    pub(crate) exact: Vec<(String, Vec<u64>)>,
    pub(crate) near: Vec<(String, Vec<f64>, f64)>,
}

impl<'a> Trial<'a> {
    pub(crate) fn run(device: &'a dyn Backend, dtype: DType, seed: u64, check: fn(&mut Trial)) -> Self {
        let mut draw = Trial { device, dtype, seed, drawn: 0, exact: Vec::new(), near: Vec::new() };
        check(&mut draw);
        draw
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.drawn += 1;
        self.drawn
    }

    /// One of 1..=n.
    pub(crate) fn up_to(&mut self, n: usize) -> usize {
        let index = self.next();
        1 + random::below(self.seed, 0, index, n as u64) as usize
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.up_to(from.len()) - 1]
    }

    /// Standard normal; the same values in every element type.
    pub(crate) fn tensor(&mut self, shape: &[usize]) -> Tensor {
        let stream = self.next();
        let values: Vec<f32> =
            (0..shape.iter().product::<usize>()).map(|i| random::normal(self.seed, stream, i as u64) as f32).collect();
        self.device.upload(&Tensor::new(shape, &values).cast(self.dtype))
    }

    /// In F32, whatever the element type of the trial.
    pub(crate) fn tensor_f32(&mut self, shape: &[usize]) -> Tensor {
        let x = self.tensor(shape);
        self.device.cast(&x, DType::F32)
    }

    /// The same on the host, changed, and back on the device.
    pub(crate) fn changed<T: Element>(&self, x: Tensor, change: impl Fn(&mut [T])) -> Tensor {
        let mut x = self.device.download(&x).copy();
        change(x.write());
        self.device.upload(&x)
    }

    pub(crate) fn values(&self, x: &Tensor) -> Vec<f64> {
        self.device.download(x).to_f64()
    }

    pub(crate) fn ids(&mut self, count: usize, below: usize) -> Tensor {
        let ids: Vec<u32> = (0..count).map(|_| self.up_to(below) as u32 - 1).collect();
        self.device.ids(&ids)
    }

    /// F64, whatever the element type of the trial.
    pub(crate) fn numbers(&mut self, count: usize) -> Tensor {
        {
            let x = self.tensor(&[count]);
            self.device.cast(&x, DType::F64)
        }
    }

    /// A value that an operation may set.
    pub(crate) fn flag(&self) -> Tensor {
        self.device.zeros([1], DType::U32)
    }

    /// Up to four documents; now and then one so long that attention does not keep its exponentials.
    pub(crate) fn documents(&mut self) -> Documents {
        let longest = self.pick(&[60, 60, 60, 700]);
        let count = if longest == 700 { 1 } else { self.up_to(4) };
        let lengths: Vec<usize> = (0..count).map(|_| self.up_to(longest)).collect();
        Documents::new(self.device, DocumentBounds::of_lengths(&lengths))
    }

    /// Up to five segments, some of them empty, on the host.
    pub(crate) fn segments(&mut self, longest: usize) -> Segments {
        let counts: Vec<usize> = (0..self.up_to(5)).map(|_| self.up_to(longest) - 1).collect();
        Segments::of_counts(&counts)
    }

    pub(crate) fn same(&mut self, what: &str, values: impl IntoIterator<Item = u64>) {
        self.exact.push((what.into(), values.into_iter().collect()));
    }

    pub(crate) fn same_tensor(&mut self, what: &str, x: &Tensor) {
        let values = self.values(x);
        self.same(what, values.into_iter().map(f64::to_bits));
    }

    pub(crate) fn near(&mut self, what: &str, x: &Tensor) {
        self.near_to(what, x, ROUNDINGS);
    }

    pub(crate) fn near_to(&mut self, what: &str, x: &Tensor, roundings: f64) {
        self.near.push((what.into(), self.values(x), roundings));
    }

    /// f32 products have one order of summation; those of f64, for gradient checks, have not.
    pub(crate) fn product(&mut self, what: &str, x: &Tensor) {
        if self.dtype == DType::F32 {
            self.same_tensor(what, x);
        }
        self.near(what, x);
    }

    pub(crate) fn expect_exact(&self, expected: &Trial, what: &str) {
        for ((name, found), (_, expected)) in self.exact.iter().zip(&expected.exact) {
            assert_eq!(found.len(), expected.len(), "{what}: {name}");
            let differing = found.iter().zip(expected).position(|(a, b)| a != b);
            assert!(differing.is_none(), "{what}: {name} differs first at {}", differing.unwrap_or(0));
        }
    }

    pub(crate) fn expect_near(&self, expected: &Trial, unit: f64, what: &str) {
        for ((name, found, roundings), (_, expected, _)) in self.near.iter().zip(&expected.near) {
            assert_eq!(found.len(), expected.len(), "{what}: {name}");
            let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
            let off = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
            let size = norm(&mut expected.iter().copied());
            let allowed = roundings * unit * size;
            assert!(off <= allowed, "{what}: {name} is off by {:.1} roundings of its norm", off / (unit * size));
        }
    }
}

/// Calls the macro `$then` with every operation of the table, and the element types in which the CPU has it.
macro_rules! all_checks {
    ($then:ident) => {
        $then! {
            empty: In::F32AndF64;
            upload: In::F32AndF64;
            download: In::F32AndF64;
            download_beside: In::F32AndF64;
            hold_back: In::F32AndF64;
            copy: In::F32AndF64;
            cast: In::F32AndF64;
            collect: In::F32AndF64;
            gemm: In::F32AndF64;
            grouped_gemm: In::F32AndF64;
            grouped_gradient: In::F32AndF64;
            prepare: In::F32AndF64;
            lower: In::F32;
            lower_both: In::F32;
            low_gemm: In::F32;
            low_gradient: In::F32;
            rms_norm: In::F32AndF64;
            rms_norm_backward: In::F32AndF64;
            add_rms_norm: In::F32AndF64;
            rms_norm_backward_add: In::F32AndF64;
            swiglu: In::F32AndF64;
            swiglu_backward: In::F32AndF64;
            swiglu_lower: In::F32;
            swiglu_backward_lower: In::F32;
            rope: In::F32AndF64;
            bias: In::F32AndF64;
            bias_backward: In::F32AndF64;
            scale: In::F32AndF64;
            fill: In::F32AndF64;
            add: In::F32AndF64;
            split: In::F32AndF64;
            join: In::F32AndF64;
            attention: In::F32AndF64;
            attention_backward: In::F32AndF64;
            append: In::F32;
            latent_attention: In::F32;
            grouped_attention: In::F32AndF64;
            grouped_attention_backward: In::F32AndF64;
            cached_attention: In::F32;
            embedding: In::F32AndF64;
            embedding_backward: In::F32AndF64;
            head: In::F32AndF64;
            head_backward: In::F32AndF64;
            draw: In::F32;
            route: In::F32AndF64;
            route_backward: In::F32AndF64;
            balance: In::F32AndF64;
            count: In::F32AndF64;
            balance_bias: In::F32AndF64;
            gather: In::F32AndF64;
            dispatch: In::F32AndF64;
            gather_backward: In::F32AndF64;
            combine: In::F32AndF64;
            combine_backward: In::F32AndF64;
            square_sum: In::F32AndF64;
            total: In::F32AndF64;
            clip: In::F32AndF64;
            average: In::F32AndF64;
            adamw: In::F32AndF64;
        }
    };
}
pub(crate) use all_checks;
